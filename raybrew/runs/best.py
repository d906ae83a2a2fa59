"""The best student of a run: on the disk it is always the one that the newest checkpoint names.

A new best one waits beside the student's folder until the checkpoint that names it is on the disk. So a run that was
killed in between, and goes on from the checkpoint before, has the student of that checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raybrew.exports.folder import next_student, recover_student, save_student, take_next_student
from raybrew.models.weights import read_record
from raybrew.tasks.scores import RowScores, save_scores
from raybrew.training.run_folder import RunFolder

__all__ = ["BestStudent"]


class BestStudent:
    """The student of each task of `tasks` ("" for an only one) in the folder of `run`, with its scores."""

    def __init__(self, run: RunFolder, tasks: Collection[str]) -> None:
        self.run = run
        self.tasks = tasks

    def put_aside(
        self,
        task: str,
        step: int,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        weights: Mapping[str, Tensor],
        scores: Callable[[], RowScores] | None,
    ) -> None:
        """Write the student of `step`; it waits for `settle`."""
        waiting, scored = next_student(self.run.student / task), self._next_scores(task)
        shutil.rmtree(waiting, ignore_errors=True)
        if scores is not None:
            save_scores(scored, scores())
        save_student(model, tokenizer, waiting, "", weights, {"step": step})

    def settle(self, step: int | None) -> None:
        """Let the students that wait take their places, if they are those of `step`; others are removed."""
        for task in self.tasks:
            folder, scored = self.run.student / task, self._next_scores(task)
            recover_student(folder)
            waiting = next_student(folder)
            recover_student(waiting)
            if step is not None and self._step_of(waiting) == step:
                if scored.is_file():
                    os.replace(scored, scored.with_name("eval.npz"))
                take_next_student(folder)
            shutil.rmtree(waiting, ignore_errors=True)
            scored.unlink(missing_ok=True)

    def is_of(self, step: int) -> bool:
        """Whether the students in place are those of `step`; older versions did not note it."""
        folders = [self.run.student / task for task in self.tasks]
        return all((each / "config.json").is_file() and self._step_of(each) in (None, step) for each in folders)

    def _step_of(self, folder: Path) -> Any:
        return (read_record(folder) or {}).get("step")

    def _next_scores(self, task: str) -> Path:
        return self.run.path / "scores" / task / ".eval.next.npz"
