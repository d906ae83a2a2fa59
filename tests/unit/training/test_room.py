"""Batches that no memory holds are refused before training, with the key that makes them smaller."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from family_models import without_latency
from transformers import BertConfig

import raybrew
from raybrew.config import FinetuneConfig, TrainConfig
from raybrew.errors import EnvironmentProblem
from raybrew.tasks.base import Masking
from raybrew.tracking.jsonl import read_metrics
from raybrew.training import encoded
from raybrew.training.encoded import check_room
from unit.models.test_families import experiment_of

MODEL = SimpleNamespace(config=BertConfig(num_hidden_layers=3, hidden_size=7, vocab_size=1000))
LENGTHS = np.full(100, 10)
MASKING = Masking(0.2, masked=0.8, randomised=0.1, whole_words=False)
#: Settings, masking and workers -> tokens of a worker's batch, tokens of its forward pass, numbers kept for each.
CASES: list[tuple[dict[str, Any], Masking | None, int, tuple[float, float, float]]] = [
    ({"batch_size": 50}, None, 1, (500, 500, 21)),
    ({"batch_size": 50}, None, 2, (250, 250, 21)),
    ({"batch_size": 10**6}, None, 1, (1000, 1000, 21)),  # there are no more rows
    ({"batch_size": 10**6, "compile": True}, None, 1, (10**7, 10**7, 21)),  # but padded to
    ({"batch_size": 50, "micro_batch_size": 5}, None, 1, (500, 50, 21)),
    ({"batch_size": 50, "micro_batch_size": 5}, None, 4, (125, 50, 21)),
    ({"batch_tokens": 400}, None, 1, (200, 200, 21)),
    ({"batch_tokens": 400, "micro_batch_tokens": 64}, None, 1, (200, 64, 21)),
    ({"batch_size": 50}, MASKING, 1, (500, 500, 221)),
]


@pytest.mark.parametrize(("settings", "masking", "workers", "wanted"), CASES)
def test_what_is_counted(
    settings: dict[str, Any],
    masking: Masking | None,
    workers: int,
    wanted: tuple[float, float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, passed, numbers = wanted
    needed = 8 * tokens + 2 * passed * numbers
    for config, key in ((TrainConfig(**settings), "train"), (FinetuneConfig(**settings), r"teacher\.finetune")):
        given = (MODEL, LENGTHS, config, masking, torch.device("cpu"), workers)
        monkeypatch.setattr(encoded, "memory_of", lambda device: needed)
        check_room(*given)
        monkeypatch.setattr(encoded, "memory_of", lambda device: needed - 1)
        name = "batch_tokens" if "batch_tokens" in settings else "batch_size"
        with pytest.raises(EnvironmentProblem, match=rf"^{key}\.{name}: given {settings[name]}; .*{key}\.micro_{name}"):
            check_room(*given)


def test_a_family_of_unknown_sizes_is_counted_by_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="unknown"))
    given = (model, LENGTHS, TrainConfig(batch_size=100), None, torch.device("cpu"), 1)
    monkeypatch.setattr(encoded, "memory_of", lambda device: 10_000)
    check_room(*given)
    monkeypatch.setattr(encoded, "memory_of", lambda device: 9_999)
    with pytest.raises(EnvironmentProblem, match=r"train\.batch_size"):
        check_room(*given)


def test_the_memory_of_this_machine_is_asked() -> None:
    config, masking = TrainConfig(batch_size=10**6, compile=True), dataclasses.replace(MASKING, rate=10**6)
    with pytest.raises(EnvironmentProblem, match="GiB of memory"):
        check_room(MODEL, LENGTHS, config, masking, torch.device("cpu"), 1)


@pytest.mark.parametrize("task", ["classification", "tagging", "qa"])
def test_nothing_is_trained(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)
    experiment = experiment_of(tmp_path, "bert", task)
    raybrew.capture(experiment)
    monkeypatch.setattr(encoded, "memory_of", lambda device: 10)
    with pytest.raises(EnvironmentProblem, match=r"train\.batch_size"):
        raybrew.distill(experiment)
    (log,) = (tmp_path / "runs").glob("*/distill-*/metrics.jsonl")
    assert not [record for record in read_metrics(log) if record["kind"] == "train"]
    with pytest.raises(EnvironmentProblem, match=r"train\.batch_size"):
        raybrew.plan(experiment)
