"""Several workers by Ray Train: the same trajectory as one, through a killed worker and through Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_project import cli, losses_of, make_project, start_cli

from raybrew.tracking.jsonl import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

#: Dropout draws differ by worker, so that two workers only follow one if there is none.
COMMON = (
    "teacher.finetune=null",
    "distill={kd_weight: 1, hard_label_weight: 1, matches: [{loss: hidden_mse}]}",
    "student.init=random",
    "teacher.source=live",
    "train.max_steps=40",
    "train.eval_steps=10",
    "train.epochs=50",
)
TWO = ("train.workers=2", "train.cpus_per_worker=0.5")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    config = folder / "base" / "config.json"
    text = config.read_text().replace('dropout_prob": 0.1', 'dropout_prob": 0.0')
    assert text.count('dropout_prob": 0.0') == 2
    config.write_text(text)
    return folder


def arguments(project: Path, run_id: str, *more: str) -> list[object]:
    return ["distill", project / "experiment.yaml", *COMMON, *more, "--run-id", run_id]


def run_of(project: Path, run_id: str) -> Path:
    return project / "runs" / "tiny" / run_id


def weights(project: Path, run_id: str) -> dict[str, torch.Tensor]:
    return load_file(run_of(project, run_id) / "student" / "model.safetensors")


def gap(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def unbroken(project: Path) -> Path:
    """Two workers from start to end."""
    _, err = cli(*arguments(project, "two", *TWO), timeout=300)
    assert "Ray dashboard: http" in err
    noise = [
        line
        for line in err.splitlines()
        if not line.startswith(("Ray dashboard", "  student", "distill tiny", "evaluate", "warning: the teacher"))
    ]
    assert noise == []
    return run_of(project, "two")


def test_two_workers_follow_one(project: Path, unbroken: Path) -> None:
    cli(*arguments(project, "one"))
    assert gap(weights(project, "one"), weights(project, "two")) < 2e-4
    ours, theirs = losses_of(run_of(project, "one")), losses_of(unbroken)
    assert len(ours) == len(theirs) == 12
    for one, two in zip(ours, theirs, strict=True):
        assert two.get("loss", 0) == pytest.approx(one.get("loss", 0), abs=1e-4)


def wait_for_step(project: Path, run_id: str, step: int, process: Any) -> None:
    deadline = time.monotonic() + 240
    log = run_of(project, run_id) / "metrics.jsonl"
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if log.exists() and f'"step": {step}' in log.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"no step {step} within the time")


def workers_below(pid: int) -> list[int]:
    """Ray Train's worker processes that the process `pid` started, directly or not."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find the workers")
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
    found = []
    for child, name in names.items():
        ancestor = child
        while ancestor in parents and ancestor != pid:
            ancestor = parents[ancestor]
        if ancestor == pid and "RayTrainWorker" in name:
            found.append(child)
    return sorted(found)


def test_a_killed_worker_changes_nothing(project: Path, unbroken: Path) -> None:
    process = start_cli(*arguments(project, "killed", *TWO, "train.checkpoint_steps=3"))
    wait_for_step(project, "killed", 10, process)
    workers = workers_below(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(r"workers? [01, ]+ failed \(.+\); resumed at step \d+ of 40 with 2 workers", err)
    mine, theirs = weights(project, "killed"), weights(project, "two")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert losses_of(run_of(project, "killed")) == losses_of(unbroken)


def test_an_elastic_run_takes_as_many_workers_as_fit(project: Path, unbroken: Path) -> None:
    """Of up to four workers that need half of the CPUs each, two fit, and compute what two do."""
    half = f"train.cpus_per_worker={(os.cpu_count() or 1) / 2}"
    cli(*arguments(project, "elastic", "train.workers=[1,4]", half), timeout=300)
    events = read_metrics(run_of(project, "elastic") / "metrics.jsonl")
    assert "with 2 workers" in events[0]["message"]
    assert all(torch.equal(weights(project, "elastic")[name], value) for name, value in weights(project, "two").items())
    assert losses_of(run_of(project, "elastic")) == losses_of(unbroken)


def test_a_divided_student_is_the_same_student(project: Path, unbroken: Path) -> None:
    """FSDP: evaluated, saved and kept whole."""
    cli(*arguments(project, "divided", *TWO, "train.parallel=fsdp"), timeout=300)
    assert gap(weights(project, "divided"), weights(project, "two")) < 2e-4
    config = json.loads((run_of(project, "divided") / "student" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_ctrl_c_saves_and_the_same_command_goes_on(project: Path, unbroken: Path) -> None:
    process = start_cli(*arguments(project, "stopped", *TWO))
    wait_for_step(project, "stopped", 10, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command continues it" in err
    # With another number of workers, which is no part of what the run computes.
    cli(*arguments(project, "stopped"))
    assert gap(weights(project, "stopped"), weights(project, "two")) < 2e-4


_RANK_ERROR = '''
import sys, time
from pathlib import Path
import torch
from raybrew.config import TrainConfig
from raybrew.errors import StoreError
from raybrew.training.launch import launch

def job(spec, context):
    """The worker `bad` meets an error of ours; the other goes on to the next exchange."""
    Path(spec["folder"], f"start.{context.rank}.{time.time()}").touch()
    if context.rank == spec["bad"]:
        raise StoreError("the folder is not there")
    context.add_up(torch.ones(1, dtype=torch.float64))
    return {"status": "done"}

if __name__ == "__main__":
    from rank_error import job
    folder = Path(sys.argv[1])
    config = TrainConfig(workers=2, launcher="ray", device="cpu", cpus_per_worker=0.5)
    for bad in (1, 0):
        started = time.monotonic()
        try:
            launch(job, {"bad": bad, "folder": str(folder)}, config, folder / str(bad), lambda line: None)
        except StoreError as error:
            print(bad, error, round(time.monotonic() - started), len(list(folder.glob("start.*"))), sep=";")
'''


def test_an_error_of_one_worker_ends_all_of_them(tmp_path: Path) -> None:
    """They would wait for it for half an hour, three times."""
    (tmp_path / "rank_error.py").write_text(_RANK_ERROR)
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "rank_error.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    told = [line.split(";") for line in done.stdout.splitlines()]
    assert [(bad, words, starts) for bad, words, _, starts in told] == [
        ("1", "the folder is not there", "2"),
        ("0", "the folder is not there", "4"),
    ], done.stderr
    assert all(int(seconds) < 200 for _, _, seconds, _ in told)
