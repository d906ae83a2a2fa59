"""Processes that need one store at the same time: one computes it, the others wait for it and take it over if it dies.

Children are forked from this process, which has everything imported. Object stores: test_store_remote.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_teacher import CLASSES, make_teacher

import raybrew
from raybrew.config.loading import load_experiment
from raybrew.errors import Interrupted
from raybrew.models.loading import ModelSource
from raybrew.store import compute

ROWS = 120


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def project(tmp_path: Path, teacher: ModelSource) -> Path:
    lines = [json.dumps({"text": f"kola mane {number}", "label": number % CLASSES}) for number in range(ROWS)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "experiment.yaml").write_text(
        f"name: x\ndata: {{train: {tmp_path / 'train.jsonl'}}}\nteacher: {{model: {teacher.model}, device: cpu}}\n"
        "student: {shape: {layers: 1}}\ntrain: {epochs: 1, batch_size: 40, device: cpu, launcher: local}\n"
        f"store: {{storage_path: {tmp_path / 'runs'}, launcher: local, rows_per_shard: 10, batch_tokens: 64}}\n",
        encoding="utf-8",
    )
    return tmp_path


class Child:
    """A process of its own that calls a verb; what it says is in a file, line by line.

    Its teacher stands still while the file `hold` is in the project.
    """

    def __init__(self, project: Path, name: str, verb: Callable[..., Any], *overrides: str, pause: float = 0.0) -> None:
        self.log, self.hold = project / f"{name}.log", project / "hold"
        self.log.touch()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        # As a program of a terminal has it: one that a script started in the background ignores Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self._work(verb, load_experiment(project / "experiment.yaml", list(overrides)), pause)
            code = 0
        except Interrupted as error:
            self._say(f"stopped: {error}")
            code = error.exit_code
        except BaseException as error:
            self._say(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)  # whatever happens, no second pytest goes on from here

    def _work(self, verb: Callable[..., Any], experiment: Any, pause: float) -> None:
        real = compute.forward

        def forward(*arguments: Any) -> Any:
            self._say("teacher")
            while self.hold.exists():
                time.sleep(0.01)
            time.sleep(pause)
            return real(*arguments)

        compute.forward = forward  # of this child alone
        verb(experiment, reporter=raybrew.LineReporter(self._say))

    def _say(self, line: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    @property
    def lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    @property
    def batches(self) -> int:
        return self.lines.count("teacher")

    def until(self, *words: str) -> str:
        """Waits for a line with one of `words`."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = [line for line in self.lines if any(word in line for word in words)]
            if found:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"{words} did not come: {self.lines}")

    def end(self) -> int:
        """Waits for its end; the exit code, or minus a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def child(project: Path) -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def start(*arguments: Any, **options: Any) -> Child:
        started.append(Child(project, f"child{len(started)}", *arguments, **options))
        return started[-1]

    yield start
    for each in started:
        try:
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def waits_for(line: str, holder: Child, project: Path) -> bool:
    """Whether a line says on what, on whom, since when, and how to stop that."""
    store = re.escape(str(project / "runs" / "store"))
    words = rf"{store}/\w+: process {holder.pid} on \S+ \(since \S+\) is capturing into this store; waiting .*Ctrl-C.*"
    return re.fullmatch(words, line) is not None


def test_two_students_of_one_teacher_share_its_pass(project: Path, child: Callable[..., Child]) -> None:
    (project / "hold").touch()
    first = child(raybrew.distill, "distill.temperature=1")
    second = child(raybrew.distill, "distill.temperature=4")
    while not any("waiting" in line for line in first.lines + second.lines):
        time.sleep(0.02)
    (project / "hold").unlink()
    assert (first.end(), second.end()) == (0, 0), first.lines + second.lines
    one, other = (first, second) if first.batches else (second, first)
    assert one.batches > 0
    assert other.batches == 0, "all that it needs is there when its turn comes"
    assert sum(waits_for(line, one, project) for line in other.lines) == 1
    assert not any("waiting" in line for line in one.lines)
    assert len(list((project / "runs" / "x").glob("distill-*/summary.json"))) == 2


def test_what_a_killed_capture_has_left_is_taken_over(project: Path, child: Callable[..., Child]) -> None:
    (project / "hold").touch()
    first = child(raybrew.capture, pause=0.1)
    first.until("teacher")
    second = child(raybrew.distill, "distill.temperature=4")
    assert waits_for(second.until("waiting"), first, project)
    (project / "hold").unlink()
    (store,) = (project / "runs" / "store").glob("*/")
    while len(list(store.glob("shards/*.json"))) < 2:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    assert second.end() == 0, second.lines
    whole = child(raybrew.capture, f"store.path={project / 'whole'}")
    assert whole.end() == 0
    assert 0 < second.batches < whole.batches, "committed shards are kept"


def test_ctrl_c_ends_the_waiting_one_alone_and_a_finished_store_is_read(
    project: Path, child: Callable[..., Child]
) -> None:
    (project / "hold").touch()
    first = child(raybrew.capture)
    first.until("teacher")
    stopped = child(raybrew.capture)
    reader = child(raybrew.distill, "teacher.source=store")
    assert waits_for(stopped.until("waiting"), first, project)
    assert waits_for(reader.until("waiting"), first, project)
    os.kill(stopped.pid, signal.SIGINT)
    assert stopped.end() == 130, stopped.lines
    assert stopped.lines[-1].startswith("stopped: no longer waiting for the capture into ")
    (project / "hold").unlink()
    assert (first.end(), reader.end()) == (0, 0), reader.lines
    assert reader.batches == 0
    # Nobody captures any more: what is not there is an error at once.
    other = child(raybrew.distill, "teacher.source=store", "store.signals=[pooled]", "task.max_length=8")
    assert other.end() == 1
    assert "StoreError" in other.lines[-1]
