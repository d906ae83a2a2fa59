"""What doctor says of machines that lack something, and of nodes that do not share their storage."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from raybrew import nodes as asking
from raybrew.cli.main import main
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.diagnosis import cluster, machine, reach
from raybrew.diagnosis.findings import Diagnosis, Finding
from raybrew.nodes import Answer, Folder, Node, places_problems

NODES = [Node(name * 4, f"10.0.0.{number}", f"host-{name}") for number, name in enumerate("abc", 1)]


def experiment_with(sections: dict[str, Any]) -> Experiment:
    return build_experiment({"name": "x", "teacher": {"model": "owner/teacher"}, **sections})


def test_tested_versions_are_those_of_the_lock_file(repo_root: Path) -> None:
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked: dict[str, set[str]] = {}
    for line in lines:
        if found := re.match(r"([\w.-]+)==([^ ;]+)", line):
            locked.setdefault(found[1], set()).add(found[2])
    assert {name: set(versions) for name, versions in machine.TESTED.items()} == {
        name: locked[name] for name in machine.TESTED
    }


def test_versions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    real = importlib.metadata.version
    given = {"ray": "2.9.0", "torch": "2.13.0+cu130", "transformers": "5.99.0"}

    def version(name: str) -> str:
        if name == "optuna":
            raise importlib.metadata.PackageNotFoundError(name)
        return given.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = list(machine.versions())
    told = {finding.message.split()[0]: finding for finding in found[:-1]}
    assert told["ray"].status == "problem"
    assert ">=2.60" in told["ray"].remedy
    assert told["optuna"].status == "problem"
    assert told["transformers"].status == "warning"
    assert "torch" not in told, "a build of a tested version is one"


def test_a_disk_that_is_too_small_for_the_plan(tmp_path: Path) -> None:
    experiment = experiment_with({"store": {"storage_path": str(tmp_path / "runs")}})
    found = {finding.message.split(":")[0]: finding for finding in machine.disks(experiment, needed=1 << 60)}
    assert found["store.path"].status == "problem"
    assert "teacher.source=live" in found["store.path"].remedy
    assert found["store.storage_path"].status != "problem"
    assert not (tmp_path / "runs").exists()


def test_a_gpu_that_is_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    experiment = experiment_with({"train": {"device": "cuda"}})
    assert [finding.status for finding in machine.gpus(experiment)] == ["problem"]
    assert [finding.status for finding in machine.gpus(None)] == ["ok"]


def test_offline_is_a_warning_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (finding,) = reach.hub(None)
    assert (finding.status, "HF_HUB_OFFLINE=1" in finding.remedy) == ("warning", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [finding.status for finding in reach.hub(None)] == ["ok"]
    experiment = experiment_with({"tracking": {"wandb": {"mode": "online"}}})
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert [finding.status for finding in reach.trackers(experiment) if finding.topic == "W&B"] == ["warning"]


Run = Callable[..., dict[str, Answer]]


def answering(run: Callable[..., Any]) -> Run:
    """`on_each_node` that runs here what `run` makes of it."""

    def on_each_node(nodes: Collection[Node], function: Callable[..., Any], *arguments: Any) -> dict[str, Answer]:
        return {node.id: run(node, function, *arguments) for node in nodes}

    return on_each_node


def test_storage_that_is_not_shared_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_SEEN_SECONDS", 0.2)
    for name in ("shared", "other"):
        (tmp_path / name).mkdir()
    places = {
        "aaaa": Folder(tmp_path / "shared"),
        "bbbb": Folder(tmp_path / "other"),
        "cccc": Folder(tmp_path / "none"),
    }

    def run(node: Node, function: Callable[..., Any], place: Folder, *names: Any) -> Answer:
        return Answer(function(node, places[node.id], *names))

    monkeypatch.setattr(asking, "on_each_node", answering(run))
    first, second = places_problems("store.path (/x)", places["aaaa"], NODES)
    assert first.startswith("store.path (/x) on node host-b (10.0.0.2)")
    assert second.startswith("store.path (/x) on node host-c (10.0.0.3)")
    assert places_problems("store.path (/x)", places["aaaa"], NODES[:1]) == []
    assert not list((tmp_path / "shared").iterdir())
    assert len(places_problems("x", places["cccc"], NODES)) == 1, "not even here"


def test_nodes_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = asking.describe_node(NODES[0])
    older = {**ours, "versions": {**ours["versions"], "torch": "2.6.0"}}
    answers = {
        "aaaa": Answer(ours, delay=0.01),
        "bbbb": Answer(older, delay=-30.0),
        "cccc": Answer(error="ModuleNotFoundError: No module named 'raybrew'"),
    }
    found = [*cluster._versions(NODES, answers), *cluster._clocks(NODES, answers)]
    assert {finding.status for finding in found} == {"problem"}
    assert "host-b" in found[0].message
    assert "torch 2.6.0 there" in found[0].message
    assert "host-c (10.0.0.3) cannot run raybrew" in found[1].message
    assert "30.0 s behind" in found[2].message
    assert not [f for f in cluster._versions(NODES[:1], answers) if f.status != "ok"]


def test_exit_code_and_html(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = Diagnosis((Finding("a", "ok", "fine"), Finding("b", "problem", "<broken>", "mend it")))
    monkeypatch.setattr("raybrew.diagnosis.run.doctor", lambda *_, **__: diagnosis)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 4
    out = capsys.readouterr().out
    assert "-> mend it" in out
    assert "1 problem, 0 warnings" in out
    assert "&lt;broken&gt;" in diagnosis._repr_html_()
