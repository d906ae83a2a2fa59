"""The one teacher pass of a sweep whose students differ, also in how they cut rows into tokens. No cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_models import without_latency

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.config.space import apply_values, corners
from raybrew.errors import ConfigError
from raybrew.pipeline.reporter import QuietReporter
from raybrew.store import compute
from raybrew.sweeps.prepare import prepare_teachers
from unit.models.test_families import experiment_of

#: The last one cuts rare words into other, and more, pieces than the teacher.
STUDENTS = [
    {"shape": {"layers": 1}, "vocabulary": {"min_count": 3}},
    {"shape": {"layers": 1}},
    {"shape": "BiGRU", "vocabulary": {}},
]


def sweep_of(folder: Path, task: str, **more: Any) -> Experiment:
    sweep = {"space": {"student": STUDENTS}, "search": "grid"}
    values = experiment_of(folder, "bert", task, sweep=sweep, **more).written()
    return build_experiment({**values, "task": {"kind": task, "max_length": 12}})


@pytest.mark.parametrize("task", ["tagging", "classification"])
def test_one_pass_for_all_students(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)
    base = sweep_of(tmp_path, task, distill={"temperature": 2.0})
    assert base.sweep is not None
    (found,) = prepare_teachers(base, 3, QuietReporter())
    # Of sentences in other windows there is more to compute, of whole rows there is not.
    assert (found.computed == found.rows == 12) if task == "classification" else (found.computed > found.rows)

    def refuse(*_: Any) -> None:
        raise AssertionError("a trial ran the teacher")

    monkeypatch.setattr(compute, "forward", refuse)
    for values in corners(base.sweep):
        trial = build_experiment(apply_values(base.written(), values))
        summary = raybrew.distill(trial, report=False).summary
        assert summary["distill"]["source"] == "store"


def test_students_whose_tokens_are_compared_but_differ_are_named(tmp_path: Path) -> None:
    words = r"impossible with student=.*min_count.*: distill\.matches: compares hidden.* token by token"
    with pytest.raises(ConfigError, match=words) as caught:
        prepare_teachers(sweep_of(tmp_path, "tagging"), 3, QuietReporter())
    assert len(caught.value.problems) == 1, "the other two are possible"
