"""Examples of the Python API run, offline, in a folder with a tiny teacher, its rows and an experiment file."""

from __future__ import annotations

import doctest
import inspect
import json
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import torch

import raybrew
import raybrew.losses
from tests.tiny_teacher import make_rows, make_teacher

#: Names whose examples are still to be written. It only gets shorter: a new name comes with one.
LACK_EXAMPLES = {
    "BasicDistiller",
    "BasicTrainer",
    "CustomMatch",
    "Diagnosis",
    "DistillationConfig",
    "EMDDistiller",
    "Export",
    "Finding",
    "GeneralDistiller",
    "Inspected",
    "JobHandle",
    "LineReporter",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
    "Plan",
    "PruneRules",
    "QuietReporter",
    "Run",
    "RunResult",
    "Store",
    "Student",
    "Sweep",
    "SweepResult",
    "TrainingConfig",
    "capture",
    "capture_all",
    "distill",
    "doctor",
    "evaluate",
    "evaluate_all",
    "export",
    "finetune",
    "finetune_all",
    "inspect",
    "list_stores",
    "load_student",
    "plan",
    "plan_prune",
    "predict",
    "prune_stores",
    "register_new",
    "report",
    "submit",
    "sweep",
    "verify_live",
    "verify_stores",
}

EXPERIMENT = """
name: tiny
data: {train: rows.jsonl, eval: rows.jsonl}
teacher: teacher
student: {shape: {layers: 1}}
distill: kd
train: {epochs: 1, device: cpu}
store: {launcher: local}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_teacher(tmp_path / "teacher")
    texts, labels = make_rows(24)["text"].to_pylist(), make_rows(24)["label"].to_pylist()
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples_of(owner: ModuleType, name: str) -> list[doctest.DocTest]:
    """The examples of a name and of its public methods."""
    value = getattr(owner, name)
    known = {**vars(sys.modules[value.__module__]), "raybrew": raybrew, "torch": torch}
    found = [(name, value)]
    if inspect.isclass(value):
        found += [
            (f"{name}.{part}", getattr(each, "__func__", each))
            for part, each in vars(value).items()
            if not part.startswith("_") and isinstance(each, FunctionType | classmethod | staticmethod | property)
        ]
    finder = doctest.DocTestFinder(recurse=False)
    tests = [test for called, each in found for test in finder.find(each, called, module=False, globs=dict(known))]
    return [test for test in tests if test.examples]


#: All but constants, which have no docstrings.
NAMES = sorted(name for name in raybrew.__all__ if callable(getattr(raybrew, name)))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LACK_EXAMPLES])
def test_examples_of_the_api_run(name: str, folder: Path) -> None:
    run(examples_of(raybrew, name))


@pytest.mark.parametrize("name", ["count_items", "kd_loss", "real_items"])
def test_examples_of_losses_run(name: str) -> None:
    run(examples_of(raybrew.losses, name))


def test_examples_of_the_package_of_losses_run() -> None:
    run(doctest.DocTestFinder(recurse=False).find(raybrew.losses, module=False, globs={"torch": torch}))


def run(examples: list[doctest.DocTest]) -> None:
    assert examples
    for each in examples:
        told: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(each, out=told.append)
        assert not failed, "".join(told)


def test_names_without_examples_are_those_that_are_known() -> None:
    lacking = {name for name in NAMES if not examples_of(raybrew, name)}
    assert lacking == LACK_EXAMPLES
