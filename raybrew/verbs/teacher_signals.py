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
from raybrew.config import Experiment
from raybrew.config.kinds import task_spec
from raybrew.data.encoded import EncodedRows, open_encoded
from raybrew.data.loader import SignalSource
from raybrew.distillers.alignment import AlignedAnswers
from raybrew.distillers.ensemble import Average, Ensemble, EnsembleSignals, request_of_member
from raybrew.distillers.objective import Objective
from raybrew.distillers.teachers import LiveTeacher, SignalsInBatch, StoredSignals, Teacher
from raybrew.models.devices import pick_precision
from raybrew.models.loading import load_model, load_tokenizer
from raybrew.models.vocabulary import open_vocabulary
from raybrew.signals import Signal
from raybrew.store.forms.base import Forms
from raybrew.store.reader import RowPositions, Store
from raybrew.training.context import Context
from raybrew.training.optim import Precision
from raybrew.verbs.inputs import Inputs, TeacherInput

__all__ = ["TeacherSignals"]


class TeacherSignals:
    """The teachers of one task, asked for what `objective` compares."""

    def __init__(
        self, view: Experiment, inputs: Inputs, objective: Objective, context: Context, vocabulary: Path | None
    ) -> None:
        self.view = view
        self.inputs = inputs
        self.objective = objective
        self.members = {given.name: _Member(view, given, objective, context, vocabulary) for given in inputs.teachers}

    @property
    def model(self) -> Any:
        """The model of the only teacher, which a student trains inside."""
        return self.members[None].model

    def teachers(self) -> tuple[Teacher, ...]:
        """What is asked in each step, in each stage; a stage runs only what it asks for."""
        temperatures = [losses.temperature for losses in self.view.distill.parts]
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
            (member, request_of_member(request, name, member.given.weight)) for name, member in self.members.items()
        ]
        return [(member, asked) for member, asked in found if asked]

    def _source(self, request: frozenset[Signal], evaluation: bool) -> SignalSource | None:
        stored = {
            member.given.name: member.stored(asked, self.inputs, evaluation)
            for member, asked in self._asked(request)
            if member.given.store is not None
        }
        if None in stored:
            return stored[None]
        return EnsembleSignals({str(name): source for name, source in stored.items()}) if stored else None

    def _teacher(self, request: frozenset[Signal], temperature: float) -> Teacher:
        asked = self._asked(request)
        live = {member.given.name: member.live(of_it) for member, of_it in asked if member.given.store is None}
        if None in live:
            return live[None]
        if not asked or asked[0][0].given.name is None:
            return SignalsInBatch()
        weights = {str(given.name): given.weight for given in self.inputs.teachers}
        average = Average(weights, self.view.teacher.average, temperature)
        return Ensemble({str(name): teacher for name, teacher in live.items()}, average)


class _Member:
    """One teacher, whose store is opened or whose model is loaded when something is asked of it for the first time."""

    def __init__(
        self,
        view: Experiment,
        given: TeacherInput,
        objective: Objective,
        context: Context,
        vocabulary: Path | None,
    ) -> None:
        self.view = view
        self.given = given
        self.context = context
        self.vocabulary = vocabulary
        self._positions: dict[bool, RowPositions] = {}  # of evaluation rows or training rows
        asked = request_of_member(objective.teacher_union, given.name, given.weight)
        in_it = view.distill.trains_in_teacher
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
        by_token = any(signal.layer is not None for signal in asked) or task_spec(self.view.task.kind).places
        if by_token and self.given.aligned_evaluation is None:
            found &= self._store.lengths[self._store.locate(ids)] == rows.lengths
        return found

    def live(self, asked: Sequence[Signal]) -> LiveTeacher:
        precision = Precision(pick_precision(self.given.precision, self.context.device), self.context.device)
        reads = load_tokenizer(self.given.source).model_input_names
        forms = Forms(self.view.store.element_type, self.view.store.forms)
        return LiveTeacher(self.model, asked, precision.autocast, self._token_ids(), reads, forms)

    def _token_ids(self) -> Tensor | None:
        """This teacher's id of each of the student's pieces, where the student's vocabulary is trimmed from its own."""
        if self.vocabulary is None:
            return None
        return torch.from_numpy(open_vocabulary(self.vocabulary).kept).to(self.context.device)

    @functools.cached_property
    def _store(self) -> Store:
        given, config = self.given, self.view.store
        return Store.open(str(given.store), given.fingerprint, config.element_type, config.cache, config.forms)

    @functools.cached_property
    def model(self) -> Any:  # a Hugging Face model
        model: nn.Module = load_model(self.given.source, self.view.task.kind, needs_head=self.needs_head)
        return model.to(self.context.device)
