"""Stages of one training: what is computed, learnt, logged and judged in each, and at the border between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_runs import Recorder, losses_only, run, settings, trainee

from raybrew.config import DistillConfig
from raybrew.config.distill import StageConfig
from raybrew.config.stages import stage_ends
from raybrew.errors import ConfigError
from raybrew.training.stages import Stages

#: Of the 18 steps of these runs.
BORDER = 9


@pytest.fixture(scope="module")
def staged() -> tuple[dict[str, torch.Tensor], Recorder]:
    return run("stages", settings(checkpoint_steps=1, weight_decay=0.5))


def test_a_parameter_without_gradient_is_left_alone(staged: Any) -> None:
    """Neither stepped nor decayed: head and pooler in the first stage, projections that end with it in the second."""
    _, recorder = staged
    start, border, end = (
        dict(trainee("stages").state_dict()),
        recorder.states[BORDER]["trainee"],
        recorder.states[18]["trainee"],
    )
    heads = [name for name in start if "classifier" in name or "pooler" in name]
    assert len(heads) == 4
    assert all(torch.equal(start[name], border[name]) and not torch.equal(border[name], end[name]) for name in heads)
    ended = [name for name in start if "projections" in name and "hidden_mse_2-4" not in name]
    assert ended
    assert all(torch.equal(border[name], end[name]) and not torch.equal(start[name], border[name]) for name in ended)
    carried = [name for name in start if "hidden_mse_2-4" in name]
    assert carried
    assert all(not torch.equal(border[name], end[name]) for name in carried)


def test_the_second_stage_is_a_training_of_its_own(staged: Any) -> None:
    """A fresh optimizer, warm-up and decay: the same as starting anew from the weights of the border."""
    weights, recorder = staged
    state = dict(recorder.states[BORDER])
    state["optimizer"] = {**state["optimizer"], "state": {}}
    again, _ = run("stages", settings(checkpoint_steps=1, weight_decay=0.5), state=state, start_step=BORDER)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    rates = {r["step"]: r["learning_rate"] for r in recorder.records if r["kind"] == "train"}
    # 18 steps: stages of 9, one of warming up, then linear; 5e-3 is the second stage's own rate.
    assert rates[9] == pytest.approx(1e-2 * (1 - 7 / 8))
    assert rates[10] == pytest.approx(5e-3)
    assert rates[18] == pytest.approx(5e-3 * (1 - 7 / 8))


def test_stopped_at_the_border(staged: Any) -> None:
    """A stop between the last step of a stage and the first of the next one, and from there on."""
    weights, unbroken = staged
    config = settings(checkpoint_steps=1, weight_decay=0.5)
    for step in (BORDER - 1, BORDER, BORDER + 1):
        resumed, recorder = run("stages", config, state=unbroken.states[step], start_step=step)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
        wanted = [losses_only(record) for record in unbroken.records if record["step"] > step]
        assert [losses_only(record) for record in recorder.records] == wanted


def test_records_name_the_stage_and_its_terms(staged: Any) -> None:
    _, recorder = staged
    assert all(record["stage"] == ("layers" if record["step"] <= BORDER else "logits") for record in recorder.records)
    lines = {record["step"]: record for record in recorder.records if record["kind"] == "train"}
    terms = {step: {name for name in line if name.startswith("loss/")} for step, line in lines.items()}
    assert "loss/kd" not in terms[8]
    assert {"loss/kd", "loss/hidden_mse.2-4"} == terms[18]
    assert BORDER in lines  # though lines are written every second step


def test_only_the_last_stage_is_judged() -> None:
    """The best metric comes early; it neither wins, nor ends training, nor is told to the launcher."""
    falling = Recorder(metric=lambda number: 1.0 - 0.01 * number)
    told: list[int] = []

    class Told:
        rank, world_size, device = 0, 1, torch.device("cpu")

        def __getattr__(self, name: str) -> Any:
            from raybrew.training.context import LocalContext

            def on_evaluation(metrics: dict[str, Any]) -> bool:
                told.append(metrics["step"])
                return False

            return getattr(LocalContext(self.device, on_evaluation=on_evaluation), name)

    config = settings(eval_steps=1, early_stopping={"patience": 4})
    _, recorder = run("stages", config, Told(), recorder=falling)  # type: ignore[arg-type]
    assert recorder.kept == [BORDER + 1]
    assert told == [10, 11, 12, 13, 14]
    assert [record["step"] for record in recorder.records if record["kind"] == "eval"] == list(range(1, 15))


def test_ends_of_stages() -> None:
    thirds = (StageConfig(share=1 / 3), StageConfig(share=1 / 3), StageConfig())
    assert stage_ends(thirds, 9) == (3, 6, 9)
    assert stage_ends(thirds, 10) == (3, 7, 10)
    assert stage_ends((StageConfig(steps=4), StageConfig()), 10) == (4, 10)
    with pytest.raises(ConfigError, match="stages of 10, 0 steps in a run of 10; each needs one at least"):
        stage_ends((StageConfig(steps=10), StageConfig()), 10)
    stages = Stages.of(DistillConfig(stages=thirds), 9)
    assert [stages.at(step) for step in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [step for step in range(10) if stages.begins_at(step)] == [3, 6]
    assert stages.span(4) == (3, 3)
