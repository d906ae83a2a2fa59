"""Whole commands on the pretend accelerator: `raybrew.distill` and others, told that their device is that one."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, OTHER_MODELS, rows_of, save_family_teacher, without_latency
from machines import refuse_others
from pretend import DEVICE, Accelerator, Wait, values_of
from safetensors.torch import load_file

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.exports.folder import save_student
from raybrew.models.devices import Place
from raybrew.training.encoded import EncodedProgram
from raybrew.verbs.result import RunResult

__all__ = [
    "CPU",
    "LABELS",
    "STEPS",
    "Project",
    "Watched",
    "distil_on",
    "refuse_waits",
    "watch",
    "weights_of",
    "work_on",
]

STEPS = 5
FAMILIES = {**FAMILY_MODELS, **OTHER_MODELS}
CPU = torch.device("cpu")

LABELS: Mapping[str, tuple[str, ...]] = {
    "classification": ("no", "yes"),
    "multilabel": ("no", "yes"),
    "regression": ("LABEL_0",),
    "tagging": ("O", "B-X", "I-X"),
    "qa": ("LABEL_0", "LABEL_1"),
    "masked_lm": (),
}
_SETTINGS: Mapping[str, dict[str, Any]] = {"qa": {"max_length": 60, "stride": 8, "max_question": 24}}

#: Sites that make the host wait for each tensor of a model, before the first step or after the last, and why.
MOVING = {
    "verbs/parts.py:build_parts": "student and projections are moved to the device",
    "verbs/teacher_signals.py:model": "a live teacher is moved to the device",
    "store/worker.py:build_teacher": "the teacher is moved to the device",
    "models/composite.py:_check_start": "what the student starts from is compared with the teacher's, once",
    "training/checkpoints.py:_on_cpu": "a checkpoint is a copy on the host",
    "verbs/best.py:put_aside": "the best student is written to a folder",
    "models/devices.py:free_gpu": "a model that was scored is moved off the device",
    "verbs/evaluate.py:_compute": "a model that is scored is moved to the device",
}
#: Sites that make the host wait once in a while, and why that is right.
NOW_AND_THEN = {
    "training/loop.py:train": "a log line has the norm of the last step's gradient",
    "training/window.py:check": "before anything is logged, evaluated or saved of steps, all of them must be finite",
    "training/window.py:over_all_ranks": "a log line and a checkpoint have the sums since the last line",
    "training/evaluation.py:add": "metrics are computed on the host, from the logits of each batch",
    "training/evaluation.py:losses_of": "losses of an evaluation are plain numbers, read once",
    "verbs/teacher_signals.py:_token_ids": "the numbers of a trimmed vocabulary are sent before the first step",
}


class Project:
    """Rows and teachers in a folder, each made once, and experiments of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, task: str, count: int = 12) -> str:
        path = self.folder / f"{task}-{count}.jsonl"
        return str(path) if path.exists() else rows_of(task, path, count)

    def teacher(self, task: str, family: str = "bert", seed: int = 0) -> str:
        """Families with one kind of tokenizer have the same tokenizer."""
        folder = self.folder / f"{family}-{task}-{seed}"
        if not folder.exists():
            save_family_teacher(family, folder, task, LABELS[task], seed)
            kept = self.folder / f"tokenizer-{FAMILIES[family][1]}"
            kept.mkdir(exist_ok=True)
            for file in [*kept.glob("*")] or [*folder.glob("*token*")]:
                shutil.copy(file, folder if file.parent == kept else kept)
        return str(folder)

    def part(self, task: str, **teacher: Any) -> dict[str, Any]:
        """The sections task, data and teacher of one task."""
        return {
            "task": {"kind": task, "max_length": 32, **_SETTINGS.get(task, {})},
            "data": {"train": self.rows(task), "eval": self.rows(task, 4)},
            "teacher": {"model": self.teacher(task), "source": "live", **teacher},
        }

    def experiment(self, kind: str = "classification", **sections: Any) -> Experiment:
        """A short training, evaluated and saved at its end."""
        train = {"max_steps": STEPS, "epochs": 9, "batch_size": 4, "learning_rate": 1e-3, "threads": 1}
        often = {"eval_steps": 1000, "checkpoint_steps": 1000, "log_steps": 1000, "precision": "fp32"}
        values: dict[str, Any] = {
            "name": "devices",
            **self.part(kind),
            "student": {"shape": {"layers": 2}},
            "store": {"storage_path": str(self.folder / "runs"), "launcher": "local"},
            **sections,
        }
        return build_experiment({**values, "train": {**train, **often, **sections.get("train", {})}})


def distil_on(device: torch.device, experiment: Experiment) -> RunResult:
    """`raybrew.distill` in a run of its own, whose training, teachers and scores are on `device`."""
    count = sum(1 for _ in Path(experiment.store.storage_path).glob("*/distill-*"))
    with pytest.MonkeyPatch.context() as patch:
        work_on(device, patch)
        return raybrew.distill(experiment, run_id=f"distill-{count}", report=False)


def work_on(device: torch.device, patch: pytest.MonkeyPatch) -> None:
    """From now on, commands take `device` for that of this process."""
    without_latency(patch)

    def place(train: Any) -> tuple[Place, bool]:
        return Place(str(device), train.precision, train.precision, "in this process"), False

    for module in ("training.launch", "store.worker"):
        patch.setattr(f"raybrew.{module}.pick_device", lambda *wanted: device)
    patch.setattr("raybrew.verbs.evaluate.place_of_evaluation", place)
    patch.setattr("raybrew.verbs.best.save_student", _save)


def _save(model: Any, tokenizer: Any, folder: Path, card: str, weights: Any, facts: Any) -> Path:
    """What the device holds has no address, by which safetensors tells what is shared."""
    given = model.state_dict() if weights is None else weights
    return save_student(model, tokenizer, folder, card, {name: values_of(each) for name, each in given.items()}, facts)


def weights_of(run: RunResult) -> dict[str, torch.Tensor]:
    """The student's weights; of several tasks by their folders."""
    files = sorted(run.student.rglob("model.safetensors"))
    return {f"{file.parent.name}/{name}": each for file in files for name, each in load_file(file).items()}


@dataclasses.dataclass
class Watched:
    """A command on the device, what was seen of it, and the waits from its first step to its last."""

    run: RunResult
    accelerator: Accelerator
    in_steps: list[Wait]


def watch(experiment: Experiment, watch_types: bool = False) -> Watched:
    """`distil_on` the pretend accelerator."""
    marks: list[int] = []
    start_step = EncodedProgram.start_step
    with Accelerator(watch_types) as accelerator, pytest.MonkeyPatch.context() as patch:

        def marked(program: EncodedProgram, step: int, rank: int) -> None:
            marks.append(len(accelerator.waits))
            start_step(program, step, rank)

        patch.setattr(EncodedProgram, "start_step", marked)
        run = distil_on(DEVICE, experiment)
    return Watched(run, accelerator, accelerator.waits[marks[0] : marks[-1]])


def refuse_waits(watched: Watched, listed: Collection[str] = (), within: Collection[str] = ()) -> None:
    """AssertionError for waits in steps that are not `listed`, or listed and not there, and for unknown ones.

    Functions of transformers that are named in `within` may wait.
    """
    waits = [wait for wait in watched.accelerator.waits if wait.within not in within]
    sites = {wait.site for wait in waits} - {"test"}
    refuse_others(sites, {**MOVING, **NOW_AND_THEN, **dict.fromkeys(listed, "")})
    assert set(listed) <= sites
    assert set(within) <= {wait.within for wait in watched.accelerator.waits}
    often = Counter(wait.site for wait in watched.in_steps if wait.within not in within)
    refuse_others({site for site, count in often.items() if count >= STEPS - 1}, dict.fromkeys(listed, ""))
