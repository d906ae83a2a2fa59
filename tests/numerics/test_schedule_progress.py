"""Weight schedules against a run of TextBrewer: the same progress at the same step."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from raybrew.catalog.projections import SCHEDULES
from raybrew.distillers.schedules import progress_of


class Linear(nn.Linear):
    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows)


@pytest.mark.parametrize("name", ["linear_decay", "linear_growth"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("length", [{"num_epochs": 2}, {"num_steps": 5}])
def test_progress_of_a_run(
    name: str, accumulation: int, length: dict[str, int], textbrewer: ModuleType, tmp_path: Path
) -> None:
    import textbrewer as package

    weights: list[float] = []

    class Recorder(package.BasicDistiller):
        def compute_loss(self, results_S: dict, results_T: dict) -> tuple[Tensor, dict]:  # type: ignore[type-arg]
            weights.append(float(self.d_config.kd_loss_weight))
            return super().compute_loss(results_S, results_T)

    student = Linear(4, 3)
    distiller = Recorder(
        train_config=package.TrainingConfig(
            output_dir=str(tmp_path), device="cpu", gradient_accumulation_steps=accumulation, ckpt_steps=100
        ),
        distill_config=package.DistillationConfig(kd_loss_weight=1, kd_loss_weight_scheduler=name),
        model_T=Linear(4, 3),
        model_S=student,
        adaptor_T=lambda batch, outputs: {"logits": outputs},
        adaptor_S=lambda batch, outputs: {"logits": outputs},
    )
    batches = [[torch.randn(2, 4)] for _ in range(8)]
    with distiller:
        distiller.train(torch.optim.SGD(student.parameters(), lr=0.1), batches, **length)
    total = length.get("num_steps", 2 * 8 // accumulation)
    steps = weights[::accumulation]
    assert len(weights) == total * accumulation
    assert steps[0] == 1.0  # as configured: the first step is the one that differs
    expected = [SCHEDULES[name].load()(progress_of(finished, total)) for finished in range(total)]
    assert steps[1:] == pytest.approx(expected[1:])
