"""Evaluation losses: by hand, whatever the batches; and as what chooses checkpoints where no head is trained."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import (
    NUM_ROWS,
    OBJECTIVES,
    Measuring,
    Rows,
    losses_only,
    run,
    settings,
    stored_signals,
    teacher_of,
    trainee,
)

from raybrew.config import DistillConfig, TrainConfig
from raybrew.data.loader import collate
from raybrew.distillers.changes import with_changes
from raybrew.distillers.objective import build_objective
from raybrew.signals import LOGITS
from raybrew.training import evaluation
from raybrew.training.encoded import Trainee

KINDS = [*OBJECTIVES, "theseus"]


def by_hand(subject: Trainee, kind: str, rows: list[int]) -> dict[str, float]:
    """Sums over single rows, divided once."""
    data, teacher, objective = Rows(kind == "tagging"), teacher_of(kind), subject.objective
    gather = stored_signals(teacher, data, objective.teacher_request)
    sums, counts = torch.zeros(len(objective.terms)).double(), torch.zeros(len(objective.terms)).double()
    subject.eval()
    for row in rows:
        batch = collate(np.array([row]), data, 0, gather)
        with torch.no_grad():
            _, found, number = subject.measure(batch.inputs, batch.teacher)
        sums, counts = sums + found.double(), counts + number.double()
    means = (sums / counts).tolist()
    total = sum(weight * mean for weight, mean in zip(objective.weights(1.0), means, strict=True))
    return {"loss": total} | {f"loss/{name}": mean for name, mean in zip(objective.names, means, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [True, False])
def test_every_row_counts_once(kind: str, stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from the store and live, in few large batches and in many small ones, with dropout switched off."""
    subject = trainee(kind, dropout=0.2)
    for stage in range(len(subject.objective.stages)):
        subject.objective.enter(stage)
        wanted = by_hand(subject, kind, list(range(NUM_ROWS)))
        assert wanted["loss"] > 1e-5
        subject.train()
        for tokens in (4096, 40, 1):
            monkeypatch.setattr(evaluation, "_COMPARED_TOKENS", tokens)
            monkeypatch.setattr(evaluation, "_BATCH_TOKENS", tokens)
            found = Measuring(kind=kind, stored=stored).evaluate(subject)
            assert found.losses == pytest.approx(wanted, rel=2e-5)
            assert subject.training


@pytest.mark.parametrize("kind", ["logits", "hidden", "tagging"])
def test_rows_that_the_teacher_lacks_reach_no_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_COMPARED_TOKENS", 60)
    lacking = (0, 7, 8, 44)
    subject = trainee(kind)
    wanted = by_hand(subject, kind, [row for row in range(NUM_ROWS) if row not in lacking])
    found = Measuring(kind=kind, lacking=lacking).evaluate(subject)
    whole = Measuring(kind=kind).evaluate(subject)
    assert found.losses == pytest.approx(wanted, rel=2e-5)
    assert found.losses != pytest.approx(whole.losses, rel=1e-4)
    assert found.metrics == pytest.approx(whole.metrics), "metrics count all rows"
    nothing = Measuring(kind=kind, lacking=tuple(range(NUM_ROWS))).evaluate(subject)
    assert nothing.losses == {}
    assert nothing.metrics == pytest.approx(whole.metrics)


def test_a_student_that_equals_its_teacher_has_no_kd_loss() -> None:
    teacher = teacher_of("logits")
    subject = Trainee(teacher_of("logits"), build_objective(DistillConfig(temperature=4.0)))
    assert torch.equal(subject.student.classifier.weight, teacher.classifier.weight)
    losses = Measuring(kind="logits").evaluate(subject).losses
    assert losses == {"loss": pytest.approx(0.0, abs=1e-6), "loss/kd": pytest.approx(0.0, abs=1e-6)}


def test_weights_and_temperature_are_those_of_the_end() -> None:
    """However far training has come, so that evaluations compare."""
    distill = DistillConfig(temperature=8.0, kd_weight=1.0, hard_label_weight=1.0)
    values = {"distill.temperature": 2.0, "distill.kd_weight": 3.0, "distill.hard_label_weight": 0.5}
    train = TrainConfig.model_validate({"changes": [{"at": 0.5, "values": values}]})
    subject = Trainee(trainee("logits").student, with_changes(build_objective(distill), distill, train, lambda _: {}))
    fixed = DistillConfig(temperature=2.0, kd_weight=3.0, hard_label_weight=0.5)
    wanted = Measuring(kind="logits").evaluate(Trainee(subject.student, build_objective(fixed))).losses
    for progress in (0.0, 0.4, 0.9):
        subject.objective.start_step(progress)
        assert Measuring(kind="logits").evaluate(subject).losses == pytest.approx(wanted)


def test_only_a_loss_on_logits_trains_the_head() -> None:
    for kind in OBJECTIVES:
        last = trainee(kind).objective.stages[-1]
        assert OBJECTIVES[kind].trains_head is (LOGITS in last.student_request), kind
    assert not OBJECTIVES["hidden only"].trains_head


class TestTheLowestLossIsKept:
    """A rate at which the loss of the layers goes up and down, while the untrained head's metric says nothing."""

    def train(self, **changes: Any) -> Measuring:
        more = {key: changes.pop(key) for key in ("state", "start_step", "recorder") if key in changes}
        recorder = more.pop("recorder", None) or Measuring(kind="hidden only")
        config = settings(**({"epochs": 4, "eval_steps": 1, "learning_rate": 0.3, "schedule": "constant"} | changes))
        return run("hidden only", config, recorder=recorder, judge="loss", dropout=0.1, **more)[1]  # type: ignore[return-value]

    def test_not_the_highest_metric(self) -> None:
        recorder = self.train(checkpoint_steps=24)
        evals = [record for record in recorder.records if record["kind"] == "eval"]
        assert len(evals) == 24
        losses = [record["eval/loss"] for record in evals]
        assert {record["judge"] for record in evals} == {"loss"}
        lowest = min(evals, key=lambda record: record["eval/loss"])
        assert recorder.kept[-1] == lowest["step"]
        assert [record["step"] for record in evals if record["best"]] == recorder.kept
        assert any(later > earlier for earlier, later in itertools.pairwise(losses))
        highest = max(evals, key=lambda record: record["eval/accuracy"])
        assert highest["step"] != lowest["step"]
        best = recorder.states[24]["best"]
        assert (best["metric"], best["value"]) == ("loss", lowest["eval/loss"])
        assert best["metrics"] == {"accuracy": lowest["eval/accuracy"]}
        assert best["losses"] == {"loss": best["value"], "loss/hidden_mse.1-2": lowest["eval/loss/hidden_mse.1-2"]}

    def test_early_stopping_waits_for_a_lower_loss(self) -> None:
        recorder = self.train(checkpoint_steps=1, early_stopping={"patience": 3})
        losses = [record["eval/loss"] for record in recorder.records if record["kind"] == "eval"]
        assert 4 <= len(losses) < 24
        assert losses.index(min(losses)) == len(losses) - 4
        assert recorder.states[len(losses)]["ended_by"] == "early_stopping"

    def test_goes_on_bit_identically(self) -> None:
        """The best loss so far and what was waited for are part of the state."""
        whole = self.train(checkpoint_steps=1, early_stopping={"patience": 3})
        steps = len([record for record in whole.records if record["kind"] == "eval"])
        for step in range(1, steps, 3):
            resumed = self.train(
                checkpoint_steps=1,
                early_stopping={"patience": 3},
                state=whole.states[step],
                start_step=step,
                recorder=Measuring(kind="hidden only"),
            )
            wanted = [losses_only(record) for record in whole.records if record["step"] > step]
            assert [losses_only(record) for record in resumed.records] == wanted
            assert resumed.kept == [kept for kept in whole.kept if kept > step]

    def test_a_best_by_another_judge_does_not_compare(self) -> None:
        """As in the state of a version that judged by the metric of a head that nothing trains."""
        whole = self.train(checkpoint_steps=1)
        state = whole.states[5] | {"best": {"step": 2, "metric": "accuracy", "value": 1e9, "metrics": {}}}
        resumed = self.train(state=state, start_step=5, recorder=Measuring(kind="hidden only"))
        assert resumed.kept[0] == 6
