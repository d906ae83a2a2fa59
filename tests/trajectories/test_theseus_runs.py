"""Training inside the teacher: one trajectory however it is cut or interrupted, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_runs import Recorder, gap, losses_only, run, settings, teacher_of, trainee

from raybrew.models.composite import Hybrid
from raybrew.training.encoded import Trainee

BORDER = 9


@pytest.fixture(scope="module")
def straight() -> tuple[dict[str, torch.Tensor], Recorder]:
    return run("theseus", settings(checkpoint_steps=1))


def test_embeddings_and_head_wait_for_the_second_stage(straight: Any) -> None:
    weights, recorder = straight
    start, border = dict(trainee("theseus").state_dict()), recorder.states[BORDER]["trainee"]
    assert not any("theseus" in name or "teacher" in name for name in weights)
    shared = [name for name in start if ".layer." not in name]
    assert len(shared) > 5
    assert all(torch.equal(start[name], border[name]) for name in shared)
    assert not torch.equal(border["student.classifier.weight"], weights["student.classifier.weight"])
    layers = [name for name in start if name.endswith("attention.self.query.weight")]
    assert all(not torch.equal(start[name], border[name]) for name in layers)
    assert [record["stage"] for record in recorder.records if record["kind"] == "eval"] == [
        "replacing",
        "alone",
        "alone",
    ]


def test_accumulated_equals_whole_batches(straight: Any) -> None:
    cut, _ = run("theseus", settings(micro_batch_size=3))
    largest, mean = gap(straight[0], cut)
    assert largest < 2e-4
    assert mean < 2e-6


def test_resumed_is_bit_identical() -> None:
    config = settings(checkpoint_steps=1)
    weights, unbroken = run("theseus", config, dropout=0.1)
    for step in (4, BORDER, 13):
        resumed, recorder = run("theseus", config, state=unbroken.states[step], start_step=step, dropout=0.1)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
        wanted = [losses_only(record) for record in unbroken.records if record["step"] > step]
        assert [losses_only(record) for record in recorder.records] == wanted


def test_a_step_is_that_of_a_model_with_these_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient of a micro-batch in the first stage, by hand through the teacher's own forward pass."""
    subject: Trainee = trainee("theseus")
    assert subject.theseus is not None
    hybrid: Hybrid = subject.theseus.hybrid
    hybrid.choose((True, False))
    torch.manual_seed(3)
    inputs = {
        "input_ids": torch.randint(1, 50, (4, 6)),
        "attention_mask": torch.ones(4, 6, dtype=torch.int64),
        "labels": torch.tensor([0, 2, -1, 1]),
        "logits_mask": torch.ones(4),
    }
    sums, counts = subject(inputs, {})
    assert counts.tolist() == [3.0]
    teacher = teacher_of("theseus")
    teacher.bert.encoder.layer = torch.nn.ModuleList(
        [subject.student.bert.encoder.layer[0], *list(teacher.bert.encoder.layer)[2:]]
    )
    logits = teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    wanted = torch.nn.functional.cross_entropy(logits, inputs["labels"], ignore_index=-1, reduction="sum")
    torch.testing.assert_close(sums[0], wanted)
    parameters = list(subject.student.bert.encoder.layer[0].parameters())
    for ours, theirs in zip(
        torch.autograd.grad(sums[0], parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    # The second stage is of the student alone.
    subject.objective.enter(1)
    alone, _ = subject(inputs, {})
    direct = subject.student(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(
        alone[0], torch.nn.functional.cross_entropy(direct, inputs["labels"], ignore_index=-1, reduction="sum")
    )
