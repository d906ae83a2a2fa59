"""Stages of one training: what is computed, learnt, logged and judged in each, and at the border between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_runs import Recorder, losses_only, model, run, settings, trainee

from raybrew.config import DistillConfig
from raybrew.config.distill import StageConfig
from raybrew.config.stages import stage_ends
from raybrew.distillers.matches import resolve_matches
from raybrew.distillers.objective import build_objective, in_stages
from raybrew.errors import ConfigError
from raybrew.models.forward import forward
from raybrew.training.encoded import Trainee
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


def scores(model: Any, hidden: torch.Tensor, layer: int) -> torch.Tensor:
    """Attention scores before the softmax of layer `layer`, counted from 1, by its projections."""
    own = model.bert.encoder.layer[layer - 1].attention.self
    query, key = (
        part(hidden).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2) for part in (own.query, own.key)
    )
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


def test_totals_of_tinybert_by_hand() -> None:
    """What each stage of `distill.method: tinybert` adds up to, from the models' own outputs."""
    distill = DistillConfig.model_validate({"method": "tinybert", "hard_label_weight": 0.5})
    student, teacher = model(2, 8, seed=1), model(4, 12, seed=2).eval()
    torch.manual_seed(3)
    batch = {"input_ids": torch.randint(1, 50, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    inputs = batch | {"labels": torch.tensor([0, 2, 1, 1]), "logits_mask": torch.ones(4)}
    stages = []
    for part in distill.parts:
        matches = resolve_matches(part.matches, 2, 4)
        sizes = ({each.student: 8 for each in matches}, {each.teacher: 12 for each in matches})
        heads = ({each.student: 2 for each in matches}, {each.teacher: 2 for each in matches})
        student_dims, teacher_dims = (
            {signal: head[signal] if signal.kind == "attention" else size[signal] for signal in size}
            for size, head in zip(sizes, heads, strict=True)
        )
        stages.append(build_objective(part, matches, student_dims, teacher_dims, seed=3))
    subject = Trainee(student, in_stages(stages))

    def total(stage: int) -> torch.Tensor:
        subject.objective.enter(stage)
        request = subject.objective.teacher_request
        with torch.no_grad():
            said = forward(teacher, inputs, request)
        sums, counts = subject(inputs, said)
        return (sums / counts * torch.tensor(subject.objective.weights(0.0))).sum()

    ours = student(**batch, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**batch, output_hidden_states=True)
    layers = torch.zeros(())
    for one, other in ((0, 0), (1, 2), (2, 4)):
        projected = subject.objective.projections[f"hidden_mse_{one}-{other}"](ours.hidden_states[one])
        layers = layers + (projected - theirs.hidden_states[other]).square().mean()
        if one:
            given = scores(student, ours.hidden_states[one - 1], one)
            layers = layers + (given - scores(teacher, theirs.hidden_states[other - 1], other)).square().mean()
    torch.testing.assert_close(total(0), layers)
    of_teacher = theirs.logits.log_softmax(-1)
    soft = (of_teacher.exp() * (of_teacher - ours.logits.log_softmax(-1))).sum(-1).mean()
    hard = torch.nn.functional.cross_entropy(ours.logits, inputs["labels"])
    torch.testing.assert_close(total(1), soft + 0.5 * hard)


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
