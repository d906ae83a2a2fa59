"""Every distiller of TextBrewer's interface on a device: the CPU's weights, and steps that wait for nothing of ours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import device_of, on_host, on_machine, refuse_others, waits_by_site
from plain_models import (
    HIDDEN,
    PlainModel,
    batches,
    examples_adaptor,
    logits_adaptor,
    settings,
    spans_adaptor,
    student,
    tags_adaptor,
    teacher,
)
from torch import nn

from raybrew import (
    BasicDistiller,
    BasicTrainer,
    DistillationConfig,
    EMDDistiller,
    GeneralDistiller,
    MultiTaskDistiller,
    MultiTeacherDistiller,
)

#: Sites that make the host wait before training, at a log line, or at its end, and why that is right.
ONCE = {
    "textbrewer/run.py:_look": "every loss must be finite before the first step",
    "training/loop.py:train": "a log line has the norm of the last step's gradient",
    "training/window.py:check": "before anything is logged or saved of steps, all of them must be finite",
    "training/window.py:over_all_ranks": "a log line and the state at the end have the sums since the last line",
    "textbrewer/program.py:_write": "the student is written to a file, tensor by tensor",
    "textbrewer/adaptors.py:<genexpr>": "is_caching_logits keeps what teachers said on the host",
    "textbrewer/run.py:run": "projections are moved to the device, tensor by tensor",
}
BY_TENSOR = {"textbrewer/program.py:_write", "textbrewer/run.py:run"}
IN_EACH_STEP: dict[str, dict[str, str]] = {
    "emd": {"distillers/emd.py:distance": "the flow between layers is a linear program, solved on the host"},
}
STEPS = 8


def matches() -> list[dict[str, Any]]:
    attention = {"layer_T": 3, "layer_S": 1, "feature": "attention", "weight": 0.1}
    pairs = {"layer_T": [3, 4], "layer_S": [1, 2], "feature": "hidden", "weight": 0.01}
    found = [HIDDEN, *({**HIDDEN, "loss": loss} for loss in ("cos", "pkd"))]
    names = ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
    found += [{**attention, "loss": loss} for loss in names]
    found += [{**pairs, "loss": loss} for loss in ("mmd", "nst")]
    found += [{**pairs, "loss": loss, "proj": ["linear", 8, 12]} for loss in ("gram", "fsp")]
    return found


def labels_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"losses": [outputs["loss"]]}


def build(kind: str, folder: Path, device: torch.device, **train: Any) -> tuple[Any, PlainModel, Any]:
    """A distiller, its student, and its data."""
    torch.manual_seed(0)
    pupil, first, second = student().to(device), teacher().to(device), teacher(seed=5).to(device)
    config, data = settings(folder, **train), batches(4)
    if kind == "trainer":
        return BasicTrainer(config, pupil, labels_adaptor), pupil, data
    if kind == "several teachers":
        distil = DistillationConfig(temperature=4)
        return (
            MultiTeacherDistiller(config, distil, [first, second], pupil, logits_adaptor, logits_adaptor),
            pupil,
            data,
        )
    if kind == "several tasks":
        both = {"a": first, "b": second}
        adaptors = {"a": logits_adaptor, "b": tags_adaptor}
        one = MultiTaskDistiller(config, DistillationConfig(), both, pupil, adaptors, adaptors)
        return one, pupil, {"a": data, "b": batches(4, seed=3)}
    if kind == "emd":
        emd = {"layer_num_S": 3, "layer_num_T": 5, "feature": "hidden", "loss": "hidden_mse", "weight": 1.0}
        emd |= {"proj": ["linear", 8, 12]}
        distil = DistillationConfig(is_caching_logits=False)
        return EMDDistiller(config, distil, first, pupil, examples_adaptor, examples_adaptor, emd=emd), pupil, data
    options: dict[str, Any] = {
        "basic": {"hard_label_weight": 0.5},
        "matches": {"hard_label_weight": 0.5, "intermediate_matches": matches()},
        "tags": {"temperature_scheduler": ["flsw", 1.0, 1.0], "kd_loss_weight_scheduler": "linear_decay"},
        "spans": {"kd_loss_type": "mse", "temperature_scheduler": ["cwsm", 1.0]},
        "cached": {"is_caching_logits": True},
        "shift": {"probability_shift": True, "hard_label_weight": 0.5},
    }
    adaptor = {"tags": tags_adaptor, "spans": spans_adaptor, "cached": logits_adaptor}.get(kind, examples_adaptor)
    made = BasicDistiller if kind in ("basic", "cached") else GeneralDistiller
    return made(config, DistillationConfig(**options[kind]), first, pupil, adaptor, adaptor), pupil, data


def trained(kind: str, folder: Path, device: torch.device, **train: Any) -> nn.Module:
    one, pupil, data = build(kind, folder, device, **train)
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=1e-2, fused=True)
    with one:
        one.train(optimizer, data, num_steps=STEPS)
    return pupil


KINDS = ["trainer", "basic", "matches", "tags", "spans", "cached", "shift", "several teachers", "several tasks", "emd"]


@pytest.mark.parametrize("kind", KINDS)
def test_distillers(machine: str, tmp_path: Path, kind: str) -> None:
    expected = trained(kind, tmp_path / "cpu", torch.device("cpu"))
    with on_machine(machine) as watched:
        found = trained(kind, tmp_path / "device", device_of(machine))
    for (name, mine), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert mine.device == device_of(machine)
        torch.testing.assert_close(on_host(mine), other.detach(), rtol=1e-3, atol=1e-4, msg=name)
    sites = waits_by_site(watched)
    often = IN_EACH_STEP.get(kind, {})
    assert {site for site, count in sites.items() if count >= STEPS} - BY_TENSOR == set(often)
    refuse_others(sites, ONCE | often)


def test_accumulated_steps_and_fp16(machine: str, tmp_path: Path) -> None:
    with on_machine(machine, watch_types=True) as watched:
        pupil = trained("matches", tmp_path, device_of(machine), gradient_accumulation_steps=2, fp16=True)
    assert all(on_host(weight).isfinite().all() for weight in pupil.parameters())
    products = Counter(each.types[0] for each in watched.seen if each.operation in ("mm", "addmm"))
    assert products[torch.float16] > 0
