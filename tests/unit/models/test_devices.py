"""Where work runs: decided from the cluster, whatever GPUs the deciding process has. GPUs are stand-ins."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_teacher import make_teacher

import raybrew.models.devices as devices
from raybrew.config import TrainConfig
from raybrew.config.loading import build_experiment
from raybrew.errors import ClusterError, ConfigError, EnvironmentProblem
from raybrew.models.devices import Devices, assume_devices, place_of_evaluation, place_of_teacher, place_of_training
from raybrew.pipeline import evaluation
from raybrew.runs import train_run
from raybrew.runtime import RayInfo
from raybrew.sweeps import tuning
from raybrew.training.context import LocalContext
from raybrew.verbs.finetune import finetune

EIGHT, NONE, OLD = Devices(8), Devices(0), Devices(8, bf16=False)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_known", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("wanted", "workers", "cluster", "device", "precision"),
    [
        ("auto", 8, EIGHT, "cuda", "bf16"),
        ("auto", 8, OLD, "cuda", "fp32"),
        ("auto", [2, 16], EIGHT, "cuda", "bf16"),
        ("auto", 4, NONE, "cpu", "fp32"),
        ("cpu", 16, EIGHT, "cpu", "fp32"),
        ("cuda", 8, EIGHT, "cuda", "bf16"),
    ],
)
def test_a_head_without_gpus_decides_for_its_workers(
    wanted: Any, workers: Any, cluster: Devices, device: str, precision: str
) -> None:
    assume_devices(cluster)
    place = place_of_training(TrainConfig(device=wanted, workers=workers))
    assert (place.device, place.precision) == (device, precision)
    assert device in place.text
    assert precision in place.text
    assert place.precision_of("auto") == precision
    assert place.precision_of("fp16") == "fp16"


@pytest.mark.parametrize(("wanted", "workers", "cluster"), [("auto", 16, EIGHT), ("cuda", 4, NONE), ("cuda", 9, EIGHT)])
def test_too_few_gpus_are_an_error_that_names_the_keys(wanted: Any, workers: int, cluster: Devices) -> None:
    assume_devices(cluster)
    with pytest.raises(
        ClusterError, match=rf"train\.workers: {workers} workers .* {cluster.gpus:g} GPUs.*train\.device"
    ):
        place_of_training(TrainConfig(device=wanted, workers=workers))


def test_what_runs_here_asks_for_no_cluster() -> None:
    assume_devices(EIGHT)
    assert place_of_training(TrainConfig(launcher="local")).device == "cpu"
    with pytest.raises(EnvironmentProblem, match=r"teacher\.finetune\.device"):
        place_of_training(TrainConfig(launcher="local", device="cuda"), "teacher.finetune")
    assert place_of_teacher("auto", "auto", "local").precision == "fp32"


def test_a_store_has_one_precision_whoever_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head on CPUs, an actor on GPUs: the head would look for another store than the one that is captured."""
    assume_devices(EIGHT)
    head = place_of_teacher("auto", "auto", "auto")
    assert (head.device, head.precision) == ("cuda", "bf16")
    assert place_of_teacher("cpu", "auto", "auto").precision == "fp32"
    assert place_of_teacher("auto", "fp32", "ray") == dataclasses.replace(
        head, precision="fp32", text=head.text.replace("bf16", "fp32")
    )
    assume_devices(NONE)
    assert place_of_teacher("cuda", "auto", "ray").precision == "bf16", "as captured elsewhere"


def test_evaluation_runs_where_training_ran() -> None:
    assume_devices(EIGHT)
    place, elsewhere = place_of_evaluation(TrainConfig(device="cuda", launcher="ray"))
    assert (place.device, place.precision, elsewhere) == ("cuda", "bf16", True)
    place, elsewhere = place_of_evaluation(TrainConfig(device="cpu", launcher="ray"))
    assert (place.device, elsewhere) == ("cpu", False)
    assert place_of_evaluation(TrainConfig())[1] is False


def _sweep(resources: dict[str, Any] | None = None, **train: Any) -> Any:
    return build_experiment(
        {
            "name": "x",
            "task": {"kind": "classification", "labels": ["a", "b"]},
            "data": {"train": "t.tsv", "eval": "t.tsv"},
            "teacher": {"model": "bert-base-uncased"},
            "student": {"shape": "T3"},
            "train": train,
            "sweep": {"space": {"distill.temperature": [1, 2]}, "resources": resources or {}},
        },
        check_files=False,
    )


@pytest.mark.parametrize(
    ("given", "resources", "gpus", "room"),
    [
        ({}, {}, 1, 8),
        ({}, {"gpus": 0.25}, 0.25, 32),
        ({}, {"gpus": 0}, 0, 96),
        ({"device": "cpu"}, {}, 0, 96),
        ({"device": "cuda"}, {"gpus": 2}, 2, 4),
    ],
)
def test_each_trial_gets_its_gpu(
    given: dict[str, Any], resources: dict[str, Any], gpus: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """96 trials that reserve none would all train on the first GPU."""
    monkeypatch.setattr(tuning, "check_resources", lambda *given: None)
    info, experiment = RayInfo(True, "x", None, 96.0, 8.0), _sweep(resources, **given)
    assert tuning.wanted_resources(experiment, info) == {"cpu": 1, "gpu": gpus}
    assert tuning.room_for(experiment, info) == room


def test_a_trial_is_told_its_device_and_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unit.sweep_helpers import base, conductor_of

    for gpus, device in ((1, "cuda"), (0, "cpu")):
        sweep = {"space": {"distill.temperature": [1, 2]}, "controls": False, "resources": {"gpus": gpus}}
        conductor = conductor_of(base(tmp_path / device, sweep))
        conductor.devices = EIGHT
        spec = json.loads(tuning._Asker(tuning._Brain(conductor, lambda: None)).suggest("a")["spec"])
        assert spec["device"] == device
        assert Devices(**spec["devices"]) == EIGHT


def test_a_trial_on_a_gpu_that_reserves_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.resources\.gpus: given 0 with train\.device=cuda"):
        _sweep({"gpus": 0}, device="cuda")
    assert _sweep({"gpus": 0}).run_id("distill") == _sweep(device="cpu").run_id("distill"), "no part of what it is"


def test_emulated_bf16_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for capabilities, expected in (([(8, 0), (9, 0)], True), ([(8, 0), (7, 5)], False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, known=capabilities: known[index])
        assert Devices.here() == Devices(2, expected)


def test_a_driver_without_a_gpu_finishes_what_workers_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`device: cuda` on a KubeRay head: training, evaluation and summary, of which the head computes nothing itself."""
    make_teacher(tmp_path / "teacher")
    rows = "".join(f"kola mane {number}\t{'ab'[number % 2]}\n" for number in range(20))
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\n{rows}")
    data = str(tmp_path / "rows.tsv")
    tuned = {"epochs": 1, "device": "cuda", "launcher": "ray", "workers": 2}
    experiment = build_experiment(
        {
            "name": "x",
            "task": {"kind": "classification", "max_length": 16},
            "data": {"train": data, "eval": data},
            "teacher": {"model": str(tmp_path / "teacher"), "finetune": tuned},
            "store": {"storage_path": str(tmp_path / "runs")},
        }
    )
    launched, evaluated = [], []

    def launch(job: Any, spec: Any, config: TrainConfig, *more: Any, **named: Any) -> Any:
        launched.append(spec.precision)
        return job(spec, LocalContext(torch.device("cpu")))

    def on_gpu(purpose: str, function: Any, *arguments: Any) -> Any:
        """The node with the GPU, which is this one."""
        evaluated.extend(each for each in arguments if isinstance(each, devices.Place))

        def here(given: Any) -> Any:
            return dataclasses.replace(given, device="cpu") if isinstance(given, devices.Place) else given

        return function(*map(here, arguments))

    assume_devices(EIGHT)
    monkeypatch.setattr(train_run, "launch", launch)
    monkeypatch.setattr(evaluation, "on_gpu", on_gpu)
    monkeypatch.setattr(evaluation, "ray_runtime", lambda purpose: contextlib.nullcontext())
    monkeypatch.setattr(evaluation, "check_seen", lambda places, purpose: None)
    run = finetune(experiment)
    assert run.summary["status"] == "done"
    assert launched == ["bf16"]
    assert {(place.device, place.precision) for place in evaluated} <= {("cuda", "bf16")}
    assert json.loads((run.path / "identity.json").read_text())["precision"] == {"train": "bf16"}
