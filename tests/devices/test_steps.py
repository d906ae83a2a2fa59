"""Whole trainings on a device: weights as on the CPU, steps that wait for nothing, types of what is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from machines import device_of, on_host, on_machine, refuse_others, waits_by_site
from tiny_runs import OBJECTIVES, Measuring, Recorder, gap, run, settings

from raybrew.training.context import LocalContext

#: Sites that make the host wait once in a while, and why that is right.
NOW_AND_THEN = {
    "training/loop.py:train": "a log line has the norm of the last step's gradient",
    "training/window.py:check": "before anything is logged, evaluated or saved of steps, all of them must be finite",
    "training/window.py:over_all_ranks": "a log line and a checkpoint have the sums since the last line",
    "training/evaluation.py:add": "metrics are computed on the host, from the logits of each batch",
    "training/evaluation.py:losses_of": "losses of an evaluation are plain numbers, read once",
}
#: Sites that make the host wait in each micro-batch, by objective.
IN_EACH_STEP = {
    "emd": {"distillers/emd.py:distance": "the flow between layers is a linear program, solved on the host"},
}
KINDS = [(kind, False) for kind in (*OBJECTIVES, "emd", "theseus")] + [("logits", True), ("attention", True)]
STEPS = 5
#: Where students and teachers run.
MODELS = ("models/forward.py:forward", "models/composite.py:__call__")


def trained(
    machine: str | None, kind: str, steps: int, stored: bool = False, watch_types: bool = False, **options: Any
) -> tuple[dict[str, torch.Tensor], Any]:
    """Final weights of a training on the CPU (None) or on a machine, and what was seen of that."""
    often = {name: options.pop(name) for name in ("log_steps", "eval_steps", "save") if name in options}
    config = settings(
        max_steps=steps,
        epochs=3,
        micro_batch_size=4,
        log_steps=often.get("log_steps", 1000),
        eval_steps=often.get("eval_steps", 1000),
        checkpoint_steps=often.get("save", 1000),
    )
    if machine is None:
        return run(kind, config, stored=stored, **options)[0], None
    with on_machine(machine, watch_types) as watched:
        weights, recorder = run(kind, config, LocalContext(device_of(machine)), stored=stored, **options)
    assert recorder.records
    assert {weight.device for weight in weights.values()} == {device_of(machine)}
    return {name: on_host(weight) for name, weight in weights.items()}, watched


@pytest.mark.parametrize(("kind", "stored"), KINDS)
def test_steps_wait_for_nothing(machine: str, kind: str, stored: bool) -> None:
    expected, _ = trained(None, kind, STEPS, stored)
    found, watched = trained(machine, kind, STEPS, stored)
    largest, mean = gap(expected, found)
    assert largest < 2e-5
    assert mean < 1e-7
    sites = waits_by_site(watched)
    often = {site for site, count in sites.items() if count >= STEPS}
    assert often == set(IN_EACH_STEP.get(kind, {}))
    refuse_others(sites, NOW_AND_THEN | IN_EACH_STEP.get(kind, {}))


@pytest.mark.parametrize("kind", ["logits", "tagging", "emd"])
def test_logs_evaluations_and_checkpoints_wait_where_they_say(machine: str, kind: str) -> None:
    context = LocalContext(device_of(machine))
    recorder: Recorder = Measuring(kind=kind, context=context)
    _, watched = trained(machine, kind, 4, log_steps=1, eval_steps=2, save=2, recorder=recorder)
    assert [record["kind"] for record in recorder.records].count("eval") == 2
    sites = waits_by_site(watched)
    refuse_others(sites, NOW_AND_THEN | IN_EACH_STEP.get(kind, {}))
    assert sites["training/evaluation.py:add"] > 0


@pytest.mark.parametrize(
    ("kind", "precision"), [*((kind, "bf16") for kind in (*OBJECTIVES, "emd", "theseus")), ("logits", "fp16")]
)
def test_types_within_autocast(machine: str, kind: str, precision: str) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    found, watched = trained(machine, kind, 2, watch_types=True, precision_name=precision)
    assert all(weight.dtype in (torch.float32, torch.float64) for weight in found.values())
    assert all(weight.isfinite().all() for weight in found.values())
    products = [each for each in watched.seen if each.operation in ("mm", "addmm")]
    of_models = {
        each.types for each in products if each.site in ("models/forward.py:forward", "models/composite.py:__call__")
    }
    assert of_models, "no product of the student or its teacher was seen"
    assert {kind for types in of_models for kind in types} == {half}
    of_losses = {kind for each in products if each.site.startswith("losses/") for kind in each.types}
    assert of_losses <= {torch.float32}
    optimizer = {kind for each in watched.seen if "adam" in each.operation for kind in each.types}
    assert optimizer == {torch.float32}
    of_fp16 = {
        "training/optim.py:scale": "whether fp16 found a scale is known when steps are checked",
        "training/loop.py:save": "a checkpoint has the scale",
    }
    listed = NOW_AND_THEN | IN_EACH_STEP.get(kind, {}) | (of_fp16 if precision == "fp16" else {})
    refuse_others(waits_by_site(watched), listed)
