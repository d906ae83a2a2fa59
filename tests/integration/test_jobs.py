"""Jobs on a real `ray start --head` cluster that asks for a token: sent by `raybrew submit` and by `ray job submit`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray_head import Head, ray_head
from tiny_project import make_model, make_rows

from raybrew.records.sweeps import load_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp") as folder, ray_head(Path(folder)) as head:
        yield head


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with relative paths, as one has it in a checkout; the teacher knows as little as its students."""
    folder = tmp_path_factory.mktemp("project")
    make_rows(folder / "train.jsonl", 160, seed=1)
    make_rows(folder / "eval.jsonl", 60, seed=2)
    make_model(folder / "base")
    values = {
        "name": "tiny",
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "task": {"max_length": 32},
        "teacher": {"model": "base"},
        "student": {"shape": {"layers": 1}},
        "train": {
            "epochs": 120,
            "batch_size": 16,
            "threads": 1,
            "log_steps": 50,
            "checkpoint_steps": 50,
            "eval_steps": 300,
            "launcher": "local",
        },
        "store": {"launcher": "local"},
        "sweep": {"space": {"distill.temperature": [1, 4]}, "search": {"kind": "grid"}, "concurrency": 1},
    }
    (folder / "x.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def run(folder: Path, head: Head, *command: str, code: int = 0, **environment: str) -> tuple[str, str]:
    """stdout and stderr of a command in `folder`, as a user of the cluster gives it."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **head.environment, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout, done.stderr


def test_a_sweep_is_stopped_and_continued_by_the_same_command(project: Path, head: Head) -> None:
    out, _ = run(project, head, "raybrew", "submit", "x.yaml", "--no-wait", "--", "sweep")
    job = out.strip()
    assert job.startswith("tiny-sweep-")
    out, _ = run(project, head, "raybrew", "submit", "x.yaml", "--no-wait", "--", "sweep")
    assert out.strip() == job, "it runs already"
    deadline, ledger = time.monotonic() + 150, project / "runs" / "tiny"
    while not any('"step": 100,' in path.read_text() for path in ledger.glob("distill-*/metrics.jsonl")):
        assert time.monotonic() < deadline, run(project, head, "raybrew", "job", "logs", job)
        time.sleep(0.1)
    out, _ = run(project, head, "raybrew", "job", "stop", job)
    assert f"job {job}: stopped" in out
    out, _ = run(project, head, "raybrew", "job", "logs", job)
    assert "trials are done in" in out, "it had the time to say so"
    (folder,) = ledger.glob("sweep-*")
    record = load_sweep(folder)
    assert record.closed == "interrupted"
    done = {trial.run for trial in record.trials_of("done")}
    assert len(done) < 3
    stamps = {run: (folder.parent / run / "summary.json").stat().st_mtime_ns for run in done}

    out, err = run(project, head, "raybrew", "submit", "x.yaml", "--", "sweep")
    assert re.search(r"(Best|Chosen) student: ", out)
    assert "INFO" not in "".join(line for line in err.splitlines() if "job_manager" not in line), "Ray's own words"
    assert f"job {job.removesuffix('-1')}-2: succeeded" in err
    record = load_sweep(folder)
    assert record.closed == "finished"
    assert len(record.trials_of("done")) == len(record.trials) == 3
    assert stamps == {run: (folder.parent / run / "summary.json").stat().st_mtime_ns for run in done}
    logs = [path.read_text() for path in ledger.glob("distill-*/metrics.jsonl")]
    assert sum('"event": "resumed"' in text for text in logs) == 1, "the trial in hand went on from its checkpoint"
    assert sum(one.computed for one in record.teachers) == 160 + 60, "the teacher ran once"


def test_ray_job_submit_does_as_well(project: Path, head: Head) -> None:
    """The SST-2 sweep as published, made small; on the other side of it `raybrew` finds its cluster."""
    sizes = ("data.train_rows=160", "data.unlabeled=null", "data.unlabeled_rows=null", "train.max_steps=6")
    files = ("data.train=train.jsonl", "data.eval=eval.jsonl", "data.columns.text=text", "teacher.model=base")
    short = ("teacher.finetune=null", "train.eval_steps=3", "sweep.rerun_best.count=0")
    space = ("sweep.space.distill.temperature=[1, 8]", "sweep.space.student.shape=[{layers: 1}]")
    place = f"store.storage_path={project / 'runs'}"
    shutil.copytree(EXPERIMENTS / "sst2", project / "sst2", dirs_exist_ok=True)
    shutil.copytree(EXPERIMENTS / "sst2_sweep", project / "sst2_sweep", dirs_exist_ok=True)
    command = ("raybrew", "sweep", "sst2_sweep/sst2_sweep.yaml", *files, *sizes, *short, *space, place, "--json")
    out, _ = run(
        project,
        head,
        *("ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--", *command),
        RAY_AUTH_MODE="token",  # `ray job` does not look for one by itself
    )
    assert '"status": "done"' in out
    assert (project / "runs" / ".rayignore").read_text().endswith("\n*\n"), "the runs of the test above stayed here"
    (folder,) = (project / "runs" / "sst2-sweep").glob("sweep-*")
    record = load_sweep(folder)
    assert record.closed == "finished"
    assert [trial.status for trial in record.trials] == ["done"] * 5, "two temperatures, two match sets, one control"
    assert len(record.teachers) == 1


def test_the_exit_code_is_that_of_the_command(project: Path, head: Head) -> None:
    out, err = run(
        project,
        head,
        "raybrew",
        "submit",
        "x.yaml",
        "train.device=cuda",
        "train.seed=1",
        "--json",
        "--",
        "distill",
        code=4,
    )
    told = json.loads(out)
    assert (told["status"], told["exit_code"], told["verb"]) == ("FAILED", 4, "distill")
    assert "sees no GPU" in err, "the log"
    out, _ = run(project, head, "raybrew", "job", "status", told["id"])
    assert "failed (exit code 4)" in out


def test_another_token_is_refused_in_one_line(project: Path, head: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    other = Head(head.address, head.dashboard, tmp_path / "token")
    _, err = run(project, other, "raybrew", "job", "ls", code=4)
    assert "refuses this token" in err
    assert "auth_token" in err
    assert len(err.splitlines()) == 1
