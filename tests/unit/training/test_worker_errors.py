"""Errors of one worker among several: which one is told, whether it is tried again, and where it is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
import xxhash
from ray.train import UserCallback

import raybrew.nodes as asking
from raybrew.data.arrow import ShardInfo
from raybrew.errors import ClusterError, DivergenceError, RunError, StoreError, StoreUnreachable
from raybrew.nodes import Answer, Folder, Node, check_seen
from raybrew.runs.needs import StoreFiles
from raybrew.storage import staging
from raybrew.tracking.jsonl import MetricsLog, read_metrics
from raybrew.training.launch import _failure_notes, _root_cause
from raybrew.training.run_folder import RunFolder

GONE = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")
OURS = StoreError("the folder is not there")


class FailedError(Exception):
    """As Ray Train's errors of workers and of its controller."""

    def __init__(
        self, workers: dict[int, BaseException] | None = None, controller: BaseException | None = None
    ) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = workers
        self.controller_failure = controller


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FailedError({0: GONE, 1: OURS}), OURS),
        (FailedError({0: GONE, 1: ValueError("bad"), 2: OURS}), OURS),
        (FailedError(controller=OURS), OURS),
        (FailedError(controller=FailedError({0: GONE, 3: OURS})), OURS),
    ],
)
def test_the_cause_is_told_and_not_what_it_did_to_others(error: BaseException, expected: BaseException) -> None:
    assert _root_cause(error) is expected


def test_causes_that_are_not_ours_are_one_line() -> None:
    found = _root_cause(FailedError({0: GONE, 1: dist.DistBackendError("NCCL"), 2: MemoryError("one\ntwo")}))
    assert isinstance(found, RunError)
    assert "MemoryError: two" in str(found)
    assert "closed by peer" in str(_root_cause(FailedError({0: GONE, 1: GONE})))
    wrapped = StoreError("cannot be written")
    wrapped.__cause__ = OSError("disk")
    assert _root_cause(wrapped) is wrapped, "our words, not those of the library below"


def test_only_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    notes: UserCallback = _failure_notes(tmp_path / "failures.jsonl")
    context: Any = None
    for error in (OURS, DivergenceError("nan")):
        with pytest.raises(type(error)):
            notes.after_exception(context, {0: GONE, 1: error})  # type: ignore[dict-item]
    assert not (tmp_path / "failures.jsonl").exists(), "no workers follow that could tell"
    notes.after_exception(context, {0: GONE, 1: StoreUnreachable("s3 does not answer")})
    notes.after_exception(context, {0: GONE})
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert lines[0] == {"1": "s3 does not answer"}
    assert list(lines[1]) == ["0"]


def test_the_run_folder_says_why_training_ended(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "x")
    with MetricsLog(run.metrics) as log:
        log.write({"step": 0, "kind": "event", "event": "started", "message": "started"})
        log.write({"step": 7, "kind": "train", "loss": 0.5})
    for _ in range(2):
        run.note_failure(OURS)
    events = [record for record in read_metrics(run.metrics) if record.get("event") == "failed"]
    assert [(event["step"], event["message"]) for event in events] == [(7, str(OURS))]
    RunFolder(tmp_path / "new", "y").note_failure(OURS)
    assert read_metrics(tmp_path / "new" / "metrics.jsonl")[0]["event"] == "failed"


NODES = [Node(name, f"10.0.0.{number}", f"host-{number}") for number, name in enumerate(("aaaa", "bbbb"), 1)]


def test_every_node_must_read_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second node has folders of the same paths, which hold something else."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "teacher").mkdir(parents=True)
        (folder / "teacher" / "config.json").write_text("{}")
        (folder / "teacher" / ".lock").write_text("x" * len(str(folder)))

    def on_each_node(nodes: Collection[Node], function: Callable[..., Any], *given: Any) -> dict[str, Answer]:
        places, expected = given
        theirs = {name: Folder(there / place.path.relative_to(here)) for name, place in places.items()}
        return {node.id: Answer(function(node, places if node.id == "aaaa" else theirs, expected)) for node in nodes}

    monkeypatch.setattr(asking, "alive_nodes", lambda: NODES)
    monkeypatch.setattr(asking, "on_each_node", on_each_node)
    places: Any = {"teacher.model (x)": Folder(here / "teacher")}
    check_seen(places, "training")
    (there / "teacher" / "config.json").write_text('{"of": "another"}')
    with pytest.raises(ClusterError, match=r"teacher\.model \(x\) on node host-2 \(10\.0\.0\.2\): holds other files"):
        check_seen(places, "training")
    shutil.rmtree(there / "teacher")
    with pytest.raises(ClusterError, match=r"host-2 \(10\.0\.0\.2\): is not there"):
        check_seen(places, "training")
    monkeypatch.setattr(asking, "alive_nodes", lambda: NODES[:1])
    check_seen(places, "training")


class RemoteStore:
    """As much of a store behind a URL as is asked for; its copies go to `path` of the node that asks."""

    location = "s3://bucket/store"

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes:
        return b"{}"


def test_every_node_has_room_for_copies_of_a_remote_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"x" * 1000
    shard = ShardInfo("data-00000.arrow", 1, len(data), xxhash.xxh3_128_hexdigest(data))
    files = {"signals/logits/data-00000.arrow": shard, "examples/data-00000.arrow": shard}
    free = {"aaaa": 2000, "bbbb": 1500}

    def on_each_node(nodes: Collection[Node], function: Callable[..., Any], *given: Any) -> dict[str, Answer]:
        answers = {}
        for node in nodes:
            monkeypatch.setattr(
                staging.shutil, "disk_usage", lambda path, node=node: SimpleNamespace(free=free[node.id])
            )
            answers[node.id] = Answer(function(node, *given))
        return answers

    monkeypatch.setattr(asking, "alive_nodes", lambda: NODES)
    monkeypatch.setattr(asking, "on_each_node", on_each_node)
    store: Any = RemoteStore(tmp_path / "cache" / "store")
    places: Any = {"store.path (s3://bucket/store)": StoreFiles(store, files)}
    with pytest.raises(ClusterError, match=r"on node host-2 .*are to be copied into .*store\.cache"):
        check_seen(places, "training")
    copy = store.path / "examples" / staging.staged_name(shard)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(data)
    check_seen(places, "training")  # half of it has been copied
    store.location = str(tmp_path)  # and a folder is read where it lies
    free["bbbb"] = 0
    check_seen(places, "training")
