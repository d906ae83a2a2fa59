"""Distillers started by torchrun: two gloo processes take the path of one, and only rank 0 writes and calls back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import PlainModel, batches, examples_adaptor, logits_adaptor, student, tags_adaptor, teacher

from raybrew import DistillationConfig, GeneralDistiller, MultiTaskDistiller, TrainingConfig

MATCH = {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 12]}


def logits_and_layers(batch: Any, outputs: Any) -> dict[str, Any]:
    """Without the model's own loss: a mean over examples of one process is not that over all."""
    return {**examples_adaptor(batch, outputs), "losses": None, "labels": None}


def trained(kind: str, folder: Path, rank: int, world_size: int) -> PlainModel:
    """Every `world_size`-th row of batches of 8, so that masks of the processes differ."""
    torch.manual_seed(4)
    cut = 2 if kind == "accumulated" else 1
    data = [
        {name: value[rank::world_size][part::cut] for name, value in batch.items()}
        for batch in batches(6, size=8)
        for part in range(cut)
    ]
    config = TrainingConfig(
        output_dir=folder,
        local_rank=rank if world_size > 1 else -1,
        ckpt_steps=3,
        log_dir=folder / "logs",
        gradient_accumulation_steps=cut,
    )
    pupil = student()
    seen: list[int] = []

    def callback(model: PlainModel, step: int) -> None:
        assert model is pupil
        if world_size > 1:  # where scripts for TextBrewer, which calls back on every rank, wait for rank 0
            torch.distributed.barrier()
        seen.append(step)

    common: dict[str, Any] = {"num_steps": 9, "max_grad_norm": 1.0, "callback": callback}
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=1e-2)
    if kind == "tasks":  # one task leaves the head of the other without gradient
        adaptors = {"examples": logits_adaptor, "tags": tags_adaptor}
        tasks = MultiTaskDistiller(
            config, DistillationConfig(), {"examples": teacher(), "tags": teacher(seed=5)}, pupil, adaptors, adaptors
        )
        tasks.train(optimizer, {"examples": data, "tags": data[:2]}, **common)
    else:
        adaptor = logits_and_layers
        one = GeneralDistiller(
            config, DistillationConfig(intermediate_matches=[MATCH]), teacher(), pupil, adaptor, adaptor
        )
        one.train(optimizer, data, **common)
    (folder / f"callbacks-{rank}.json").write_text(json.dumps(seen))
    return pupil


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "accumulated", "tasks"])
def test_torchrun_equals_one_process(kind: str, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    wanted = trained(kind, alone, 0, 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parents[2]), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, kind, str(together)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unused parameters" not in done.stderr
    found = torch.load(together / "gs9.pkl", weights_only=True)
    assert found.keys() == wanted.state_dict().keys()
    for name, value in wanted.state_dict().items():
        if "query_key" not in name:  # their biases have no gradient but rounding, out of which Adam makes steps
            torch.testing.assert_close(found[name], value, atol=2e-4, rtol=1e-3)
    weights = sorted(path.name for path in together.glob("*.pkl"))
    assert weights == sorted(path.name for path in alone.glob("*.pkl")) == ["gs3.pkl", "gs6.pkl", "gs9.pkl"]
    assert json.loads((together / "callbacks-0.json").read_text()) == [3, 6, 9]
    assert json.loads((together / "callbacks-1.json").read_text()) == []
    assert len(list((together / "logs").iterdir())) == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    trained(sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    torch.distributed.destroy_process_group()
