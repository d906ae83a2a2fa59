"""Where a task's losses get the teachers' outputs from, for training rows and for evaluation rows, in each stage.

A teacher answers from its store or runs live. Each store is opened and each model loaded once, however many stages and
sets of rows ask for it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raybrew.catalog.signals import KINDS
from raybrew.config.kinds import task_spec
from raybrew.data.encoded import EncodedRows, open_encoded
from raybrew.data.loader import SignalSource
from raybrew.distillers.alignment import AlignedAnswers
from raybrew.distillers.ensemble import Average, Ensemble, EnsembleSignals, request_of_member
from raybrew.distillers.objective import Objective
from raybrew.distillers.teachers import LiveTeacher, SignalsInBatch, StoredSignals, Teacher
from raybrew.models.devices import pick_precision
from raybrew.models.vocabulary import open_vocabulary
from raybrew.pipeline.inputs import Inputs, TeacherInput
from raybrew.pipeline.resolve import ResolvedTask
from raybrew.signals import Signal
from raybrew.store.forms.base import Forms
from raybrew.store.reader import RowPositions, Store
from raybrew.training.context import Context
from raybrew.training.optim import Precision

__all__ = ["TeacherSignals"]


class TeacherSignals:
    """The teachers of one task, asked for what `objective` compares."""

    def __init__(
        self, task: ResolvedTask, inputs: Inputs, objective: Objective, context: Context, vocabulary: Path | None
    ) -> None:
        self.task = task
        self.inputs = inputs
        self.objective = objective
        self.members = {given.label: _Member(task, given, objective, context, vocabulary) for given in inputs.teachers}

    @property
    def model(self) -> Any:
        """The model of the only teacher, which a student trains inside."""
        return self.members[""].model

    def teachers(self) -> tuple[Teacher, ...]:
        """What is asked in each step, in each stage; a stage runs only what it asks for."""
        temperatures = [losses.temperature for losses in self.task.distill.parts]
        requests = [stage.teacher_request for stage in self.objective.stages]
        return tuple(map(self._teacher, requests, temperatures))

    def sources(self, evaluation: bool = False) -> tuple[SignalSource | None, ...]:
        """What is put into batches of training or evaluation rows, in each stage, of teachers that have a store."""
        return tuple(self._source(stage.teacher_request, evaluation) for stage in self.objective.stages)

    def evaluated(self) -> npt.NDArray[np.bool_]:
        """Which of the evaluation rows all teachers have what is compared of; the others reach no loss.

        A store lacks what its teacher could not compute. Where tokens are compared one by one, rows drop out that a
        trimmed vocabulary, which knows the pieces of training rows, cuts into other tokens than the teacher's.
        """
        rows = self.inputs.compared
        assert rows is not None  # there are evaluation rows
        found = np.ones(rows.num_rows, np.bool_)
        for member, asked in self._asked(self.objective.teacher_union):
            if member.given.store is not None:
                found &= member.has(rows, asked)
        return found

    def _asked(self, request: frozenset[Signal]) -> list[tuple[_Member, tuple[Signal, ...]]]:
        """The members of which something is asked, and what."""
        found = [
            (member, request_of_member(request, label or None, member.given.weight))
            for label, member in self.members.items()
        ]
        return [(member, asked) for member, asked in found if asked]

    def _source(self, request: frozenset[Signal], evaluation: bool) -> SignalSource | None:
        stored = {
            member.given.label: member.stored(asked, self.inputs, evaluation)
            for member, asked in self._asked(request)
            if member.given.store is not None
        }
        if "" in stored:
            return stored[""]
        return EnsembleSignals(stored) if stored else None

    def _teacher(self, request: frozenset[Signal], temperature: float) -> Teacher:
        asked = self._asked(request)
        live = {member.given.label: member.live(of_it) for member, of_it in asked if member.given.store is None}
        if "" in live:
            return live[""]
        if not asked or not asked[0][0].given.label:
            return SignalsInBatch()
        weights = {given.label: given.weight for given in self.inputs.teachers}
        return Ensemble(live, Average(weights, self.task.teacher.average, temperature))


class _Member:
    """One teacher, whose store is opened or whose model is loaded when something is asked of it for the first time."""

    def __init__(
        self,
        task: ResolvedTask,
        given: TeacherInput,
        objective: Objective,
        context: Context,
        vocabulary: Path | None,
    ) -> None:
        self.task = task
        self.given = given
        self.context = context
        self.vocabulary = vocabulary
        self._positions: dict[bool, RowPositions] = {}  # of evaluation rows or training rows
        asked = request_of_member(objective.teacher_union, given.label or None, given.weight)
        in_it = task.distill.trains_in_teacher
        self.needs_head = in_it or any(signal.kind in KINDS and KINDS[signal.kind].head for signal in asked)

    def stored(self, asked: Sequence[Signal], inputs: Inputs, evaluation: bool) -> SignalSource:
        rows, aligned = inputs.training, self.given.aligned
        if evaluation:
            assert inputs.compared is not None  # there are evaluation rows
            rows, aligned = inputs.compared, self.given.aligned_evaluation
        if evaluation not in self._positions:
            self._positions[evaluation] = self._store.locate_all(rows.arrow.flat("id"))
        stored = StoredSignals(self._store, self._positions[evaluation], asked)
        return stored if aligned is None else AlignedAnswers(stored, open_encoded(Path(aligned)), rows)

    def has(self, rows: EncodedRows, asked: Sequence[Signal]) -> npt.NDArray[np.bool_]:
        """Which rows the store has what is asked of, for the student's tokens."""
        ids, aside = rows.ids, self._store.set_aside(asked)
        found = np.ones(len(ids), np.bool_)
        if aside:
            found = np.array([each.tobytes().hex() not in aside for each in ids], np.bool_)
        by_token = any(signal.layer is not None for signal in asked) or task_spec(self.task.kind).places
        if by_token and self.given.aligned_evaluation is None:
            found &= self._store.lengths[self._store.locate(ids)] == rows.lengths
        return found

    def live(self, asked: Sequence[Signal]) -> LiveTeacher:
        precision = Precision(pick_precision(self.given.precision, self.context.device), self.context.device)
        reads = self.task.models.tokenizer(self.given.source).model_input_names
        forms = Forms(self.task.store.element_type, self.task.store.forms)
        return LiveTeacher(self.model, asked, precision.autocast, self._token_ids(), reads, forms)

    def _token_ids(self) -> Tensor | None:
        """This teacher's id of each of the student's pieces, where the student's vocabulary is trimmed from its own."""
        if self.vocabulary is None:
            return None
        return torch.from_numpy(open_vocabulary(self.vocabulary).kept).to(self.context.device)

    @functools.cached_property
    def _store(self) -> Store:
        given, config = self.given, self.task.store
        return Store.open(str(given.store), given.fingerprint, config.element_type, config.cache, config.forms)

    @functools.cached_property
    def model(self) -> Any:  # a Hugging Face model
        model: nn.Module = self.task.models.model(self.given.source, self.task.kind, needs_head=self.needs_head)
        return model.to(self.context.device)
