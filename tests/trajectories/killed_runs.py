"""Runs that are killed at random moments and run again, forked from one process that has everything imported.

`python killed_runs.py FOLDER FIRST_SEED LAST_SEED` prints one JSON line for each case: what differs from the unbroken
run of the same configuration, how often it was killed, and how often it went on from a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tiny_project import make_project

import raybrew.runs.train_run
import raybrew.training.encoded
from raybrew.config.loading import load_experiment
from raybrew.tracking.jsonl import read_metrics
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import LocalContext
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.distill import distill

#: What the cases train, in turn: with dropout, projections, accumulation, early stopping, any rhythm of checkpoints,
#: in stages, and without a loss on logits.
VARIANTS = (
    ("teacher.source=live", "train.checkpoint_steps=1"),
    ("teacher.source=store", "train.checkpoint_steps=3", "train.micro_batch_size=5", "train.eval_steps=7"),
    ("teacher.source=live", "train.batch_tokens=160", "train.checkpoint_steps=4", "train.layer_lr_decay=0.8"),
    (
        "teacher.source=store",
        "train.checkpoint_steps=null",
        "train.checkpoint_epochs=1",
        "train.early_stopping={patience: 2, min_delta: 1.0}",
    ),
    ("teacher.source=auto", "train.checkpoint_steps=3", "distill.method=tinybert", "distill.matches=[]"),
    (
        "student.init=teacher",
        "train.checkpoint_steps=1",
        "train.micro_batch_size=5",
        "distill.method=theseus",
        "distill.matches=[]",
    ),
    (  # judged by the evaluation loss of the layers
        "teacher.source=store",
        "train.checkpoint_steps=2",
        "train.eval_steps=3",
        "distill.kd_weight=0",
        "distill.hard_label_weight=0",
        "train.learning_rate=0.05",
        "train.early_stopping={patience: 4, min_delta: 0.0001}",
    ),
)
#: Values that depend on the clock and the machine.
CLOCK = ("time", "samples_per_second", "tokens_per_second", "memory_bytes")


class _Captured(Exception):  # noqa: N818 (not an error)
    pass


def job_of(experiment_file: Path, overrides: tuple[str, ...]) -> tuple[Any, Any]:
    """The job that `raybrew distill` would launch, and what it is given."""
    found: list[Any] = []

    def capture(job: Any, spec: Any, *_: Any, **__: Any) -> Any:
        found.append((job, spec))
        raise _Captured

    experiment = load_experiment(experiment_file, ["teacher.finetune=null", "student.init=random", *overrides])
    with contextlib.suppress(_Captured), mock.patch.object(raybrew.runs.train_run, "launch", capture):
        distill(experiment, report=False)
    job, spec = found[0]
    return job, spec


def start(job: Any, spec: Any, folder: Path) -> tuple[int, int]:
    """Fork a process that runs the job in `folder`; returns its id and a pipe that gets a byte for each step begun."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        begin = raybrew.training.encoded.EncodedProgram.start_step

        def start_step(self: Any, step: int, rank: int) -> None:
            os.write(writing, b".")
            begin(self, step, rank)

        raybrew.training.encoded.EncodedProgram.start_step = start_step  # type: ignore[method-assign]
        folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(folder, spec.run.run_id)
        result = job(dataclasses.replace(spec, run=run), LocalContext(torch.device("cpu")))
        status = 0 if result["status"] == "done" else 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(child: int, pipe: int) -> int:
    """Wait for the process; its exit status, or minus the signal that ended it."""
    while os.read(pipe, 4096):
        pass
    os.close(pipe)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(child: int, pipe: int, steps: int, delay: float) -> int:
    """SIGKILL the process `delay` seconds after it began so many steps, wherever it is then."""
    while steps > 0 and (got := os.read(pipe, steps)):
        steps -= len(got)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return finish(child, pipe)


def what_differs(ours: Path, unbroken: Path) -> list[str]:
    """Words for each difference in metrics, student, or the last training state."""
    found = []
    mine, wanted = ([_steady(record) for record in read_metrics(run / "metrics.jsonl")] for run in (ours, unbroken))
    mine, wanted = ([record for record in each if record["kind"] != "event"] for each in (mine, wanted))
    if not wanted or mine != wanted:
        found.append(f"metrics.jsonl: {len(mine)} records, wanted {len(wanted)}")
    if (ours / "student/model.safetensors").read_bytes() != (unbroken / "student/model.safetensors").read_bytes():
        found.append("student")
    states = [Checkpoints(run / "checkpoints", 1).load_newest() for run in (ours, unbroken)]
    assert states[0] is not None
    assert states[1] is not None
    if states[0][0] != states[1][0]:
        found.append(f"last step {states[0][0]}, wanted {states[1][0]}")
    parts = ("trainee", "optimizer", "scaler", "program", "window", "best", "step", "ended_by")
    found += [f"state: {part}" for part in parts if not _same(states[0][1][part], states[1][1][part])]
    return found


def _steady(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in CLOCK}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


def main(folder: Path, seeds: range) -> None:
    torch.set_num_threads(1)
    experiment = make_project(folder)
    capture = load_experiment(experiment, ["teacher.finetune=null", "teacher.source=auto", "student.init=random"])
    with contextlib.suppress(_Captured), mock.patch.object(raybrew.runs.train_run, "launch", side_effect=_Captured):
        distill(capture, report=False)  # fills the store
    jobs, steps = [], []
    for number, overrides in enumerate(VARIANTS):
        jobs.append(job_of(experiment, overrides))
        assert finish(*start(*jobs[-1], folder / f"unbroken-{number}")) == 0
        found = Checkpoints(folder / f"unbroken-{number}" / "checkpoints", 1).load_newest()
        assert found is not None
        steps.append(found[0])
    for seed in seeds:
        random = np.random.default_rng(seed)
        variant = seed % len(VARIANTS)
        run, endings = folder / f"killed-{seed}", []
        for _ in range(int(random.integers(1, 4))):
            child, pipe = start(*jobs[variant], run)
            endings.append(
                kill_after(child, pipe, int(random.integers(1, steps[variant] // 2)), random.uniform(0, 0.02))
            )
        endings.append(finish(*start(*jobs[variant], run)))
        differences = what_differs(run, folder / f"unbroken-{variant}")
        events = [record.get("event") for record in read_metrics(run / "metrics.jsonl")]
        kills = sum(ending == -signal.SIGKILL for ending in endings)
        case = {"seed": seed, "differs": differences, "kills": kills, "last": endings[-1]}
        print(json.dumps(case | {"resumed": events.count("resumed")}), flush=True)
        shutil.rmtree(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3]) + 1))
