"""The MLflow tracker against a store in memory that has the client's calls, and refuses what MLflow refuses."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raybrew.config.tracking import MlflowConfig, TrackingConfig
from raybrew.diagnosis.reach import trackers as findings
from raybrew.tracking.base import SummaryTracker
from raybrew.tracking.mlflow import MlflowTracker
from raybrew.tracking.trackers import add_test, build_trackers


@dataclasses.dataclass
class Metric:
    key: str
    value: float
    timestamp: int
    step: int


@dataclasses.dataclass
class Param:
    key: str
    value: str


@dataclasses.dataclass
class Run:
    experiment: str
    name: str
    tags: dict[str, str]
    status: str = "RUNNING"
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    points: list[Metric] = dataclasses.field(default_factory=list)
    texts: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(metrics={point.key: point.value for point in self.points})


class Client:
    """`mlflow.tracking.MlflowClient`, as far as it is documented and used."""

    experiments: dict[str, str]
    runs: dict[str, Run]

    def __init__(self, tracking_uri: str | None = None) -> None:
        if tracking_uri == "http://down":
            raise OSError("no answer")

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return None if found is None else types.SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        assert name not in self.experiments
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        assert all(isinstance(value, str) for value in tags.values())
        key = f"id{len(self.runs)}"
        self.runs[key] = Run(experiment_id, run_name, tags)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status

    def get_run(self, run_id: str) -> Run:
        return self.runs[run_id]

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [point for point in self.runs[run_id].points if point.key == key]

    def log_batch(self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
        run = self.runs[run_id]
        assert run.status == "RUNNING"
        assert len(params) <= 100
        for param in params:
            assert run.params.setdefault(param.key, param.value) == param.value, "MLflow refuses another value"
        run.points += metrics

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        self.runs[run_id].texts[artifact_file] = text

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        assert status in ("FINISHED", "KILLED", "FAILED")
        self.runs[run_id].status = status


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """Runs of the store by id; `mlflow` is a module without a network."""
    package, tracking, entities = (types.ModuleType(f"mlflow{name}") for name in ("", ".tracking", ".entities"))
    entities.Metric, entities.Param = Metric, Param  # type: ignore[attr-defined]
    client = type("MlflowClient", (Client,), {"experiments": {}, "runs": {}})
    tracking.MlflowClient = client  # type: ignore[attr-defined]
    tracking.get_tracking_uri = lambda: "sqlite:///mlflow.db"  # type: ignore[attr-defined]
    package.tracking, package.entities = tracking, entities  # type: ignore[attr-defined]
    for module in (package, tracking, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    found: dict[str, Run] = client.runs  # type: ignore[attr-defined]
    return found


def train(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": 0.5, "time": 1.0, "kind": "train", "loss": 1 / step, "loss/b:cos.1-2": 0.5}


def session(folder: Path, steps: Sequence[int], resume: bool, status: Any, **config: Any) -> None:
    asked = TrackingConfig(mlflow=MlflowConfig(**config))
    trackers = build_trackers(asked, experiment="exp", job_type="distill")
    values = {"train": {"rate": 1e-4}, "list": [1, 2], "none": None, "many": {f"k{n}": n for n in range(150)}}
    trackers.start("distill-1", {**values, "url": "https://me:pw@host/x"}, folder, resume)
    for step in steps:
        trackers.log(train(step))
    trackers.log({"step": steps[-1], "kind": "eval", "eval/accuracy": 0.75, "best": True})
    trackers.log({"step": steps[-1], "kind": "event", "event": "note", "message": "hello"})
    assert trackers.names == ("mlflow",)
    trackers.finish(status)


def test_a_run_goes_on_under_its_id_without_double_points(tmp_path: Path, runs: dict[str, Run]) -> None:
    session(tmp_path, [1, 2, 3], False, "interrupted", tags={"team": "a"})
    (run,) = runs.values()
    assert (run.status, run.name) == ("KILLED", "distill-1")
    assert run.tags == {"team": "a", "raybrew.group": "exp", "raybrew.verb": "distill"}
    session(tmp_path, [2, 3, 4], True, "done")
    assert len(runs) == 1
    assert run.status == "FINISHED"
    steps = [point.step for point in run.points if point.key == "train/loss"]
    assert steps == [1, 2, 3, 4]
    assert {"train/loss/b_cos.1-2", "eval/accuracy", "best/accuracy"} <= run.data.metrics.keys()
    assert (run.params["train.rate"], run.params["list"], run.params["run_id"]) == ("0.0001", "[1, 2]", "distill-1")
    assert "none" not in run.params
    assert run.params["many.k149"] == "149"
    assert run.params["url"] == "https://***@host/x"


def test_what_is_known_after_training_joins_the_run(tmp_path: Path, runs: dict[str, Run]) -> None:
    asked = TrackingConfig(mlflow=MlflowConfig(experiment="all"))
    test = {"metric": "accuracy", "value": 0.8, "metrics": {"accuracy": 0.8, "mcc": 0.5}, "rows": 40}
    add_test(asked, experiment="exp", job_type="distill", folder=tmp_path, test=test)
    assert not runs, "MLflow does not know the run"
    session(tmp_path, [1], False, "done")
    for value in (0.8, 0.9):
        metrics = {"accuracy": value, "mcc": 0.5}
        add_test(asked, experiment="exp", job_type="distill", folder=tmp_path, test=test | {"metrics": metrics})
    (run,) = runs.values()
    assert run.data.metrics["test/accuracy"] == 0.9
    assert run.data.metrics["test/rows"] == 40
    assert run.status == "FINISHED"


def test_sweeps_leave_tables_and_pages(tmp_path: Path, runs: dict[str, Run]) -> None:
    asked = TrackingConfig(tensorboard=True, mlflow=MlflowConfig()).grouped("exp-sweep-1")
    trackers = build_trackers(asked, experiment="exp", job_type="sweep", summaries=True)
    assert trackers.names == ("mlflow",), "TensorBoard has no runs of sweeps"
    (tmp_path / "report.html").write_text("<p>found</p>")
    for tried in (3, 5):
        trackers = build_trackers(asked, experiment="exp", job_type="sweep", summaries=True)
        trackers.start("sweep-1", {}, tmp_path, resume=True)
        trackers.log_table("trials", [{"run": "a", "value": 0.5}])
        trackers.log_page("report", tmp_path / "report.html")
        trackers.summarise({"tried": tried, "best/configuration": "T3"})
        trackers.finish("done")
    (run,) = runs.values()
    assert run.tags["raybrew.group"] == "exp-sweep-1"
    assert run.tags["best/configuration"] == "T3"
    assert run.data.metrics["tried"] == 5
    assert '"value": 0.5' in run.texts["trials.json"]
    assert run.texts["report.html"] == "<p>found</p>"
    assert isinstance(MlflowTracker(MlflowConfig(), experiment="e", job_type="j"), SummaryTracker)


def test_a_server_that_does_not_answer_stops_nothing(
    tmp_path: Path, runs: dict[str, Run], caplog: pytest.LogCaptureFixture
) -> None:
    trackers = build_trackers(TrackingConfig(mlflow=MlflowConfig(uri="http://down")), experiment="e", job_type="j")
    trackers.start("distill-1", {}, tmp_path)
    trackers.log(train(1))
    trackers.finish("done")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "raybrew.tracking"]
    assert "tracker mlflow failed in start" in line


def test_doctor_says_where_runs_go(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    from raybrew.config.loading import build_experiment

    def found(**tracking: Any) -> list[str]:
        experiment = build_experiment({"name": "x", "tracking": tracking, "teacher": {"model": "a/b"}})
        return [finding.status for finding in findings(experiment) if finding.topic == "MLflow"]

    assert found() == found(mlflow={}) == ["ok"]
    assert found(mlflow={"uri": "http://127.0.0.1:1"}) == ["warning"]
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    assert found(mlflow={}) == ["problem"]
