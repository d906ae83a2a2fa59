"""What only a real GPU can show: compiled students, reduced types, whole commands, memory that is given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import gap, run, settings
from tiny_teacher import make_teacher

from raybrew.config.loading import build_experiment
from raybrew.training.context import LocalContext
from raybrew.verbs.distill import distill

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(str(request.param))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("precision", "largest"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_compiled_students_train_as_others_do(device: torch.device, precision: str, largest: float) -> None:
    weights = []
    for compiled in (False, True):
        config = settings(compile=compiled, max_steps=3, epochs=1, learning_rate=1e-3)
        found, recorder = run("hidden", config, LocalContext(device), precision_name=precision)
        weights.append({name: value.cpu() for name, value in found.items()})
        assert all(record["loss"] == record["loss"] for record in recorder.records if record["kind"] == "train")
    assert gap(*weights)[0] < largest


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_types_train(device: torch.device, precision: str) -> None:
    """The loss falls as far as it does in float32."""
    ends = {}
    for name in ("fp32", precision):
        _, recorder = run("logits", settings(epochs=8), LocalContext(device), precision_name=name)
        losses = [record["loss"] for record in recorder.records if record["kind"] == "train"]
        ends[name] = losses[-1] / losses[0]
    assert ends["fp32"] < 1.0
    assert ends[precision] == pytest.approx(ends["fp32"], abs=0.03)


def test_distills_and_gives_the_gpu_back(device: torch.device, tmp_path: Path) -> None:
    source = make_teacher(tmp_path / "teacher")
    rows = "".join(f"kola mane {number}\t{number % 3}\n" for number in range(60))
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\n{rows}")
    data = str(tmp_path / "rows.tsv")
    values: dict[str, Any] = {
        "name": "gpu",
        "task": {"kind": "classification", "max_length": 16},
        "data": {"train": data, "eval": data},
        "teacher": {"model": source.model, "device": device.type},
        "student": {"shape": {"layers": 1, "hidden": 16, "heads": 2, "feed_forward": 32}},
        "distill": {"matches": [{"loss": "hidden_mse", "layers": "final"}]},
        "train": {"epochs": 2, "device": device.type, "launcher": "local"},
        "store": {"storage_path": str(tmp_path / "runs"), "launcher": "local"},
    }
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    summary = distill(build_experiment(values)).summary
    assert summary["status"] == "done"
    assert str(summary["device"]).startswith(device.type)
    if device.type == "cuda":
        assert torch.cuda.memory_allocated() <= before + 2**20


def test_make_gpu_says_why_it_refuses() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    script = ROOT / "experiments" / "benchmarks" / "gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 3
    assert "GPU" in done.stderr
    assert not done.stdout
