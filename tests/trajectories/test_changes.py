"""Values that change as training goes on: what is in force when, and that a state taken over is no other training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import OBJECTIVES, gap, losses_only, run, settings

from raybrew.config.changes import value_at
from raybrew.config.distill import DistillConfig
from raybrew.distillers.changes import with_changes
from raybrew.distillers.matches import resolve_matches
from raybrew.sweeps.students import RunStates
from raybrew.tracking.jsonl import MetricsLog, read_metrics
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.encoded import EncodedProgram

STEPS = 18
FIRST = {"at": 1 / 3, "values": {"distill.temperature": 1.5, "train.learning_rate": 4e-3}}
SECOND = {"at": round(11 / STEPS, 9), "values": {"distill.kd_weight": 0.2}}


def changing(kind: str, config: Any) -> Callable[[EncodedProgram], None]:
    def match_weights(distill: DistillConfig) -> dict[str, float]:
        return {match.name: match.weight for match in resolve_matches(distill.matches, 2, 4)}

    def change(program: EncodedProgram) -> None:
        with_changes(program.trainee.objective, OBJECTIVES[kind], config, match_weights)

    return change


def settings_with(*changes: dict[str, Any]) -> Any:
    return settings().model_validate({**settings().model_dump(), "log_steps": 1, "changes": list(changes)})


def test_each_value_holds_from_the_first_step_at_its_share() -> None:
    course = [(0.0, "a"), (1 / 3, "b"), (round(2 / 3, 9), "c")]
    assert "".join(value_at(course, step / 6) for step in range(6)) == "aabbcc"
    assert "".join(value_at(course, step / 7) for step in range(7)) == "aaabbcc"
    config = settings_with(FIRST, SECOND)
    seen: list[tuple[float, list[float], float]] = []

    def spy(program: EncodedProgram) -> None:
        changing("logits", config)(program)
        assert program.num_steps == STEPS
        objective, start = program.trainee.objective, program.start_step
        kd = objective.terms[0].compute

        def start_step(step: int, rank: int) -> None:
            start(step, rank)
            rate = program.optimizer.param_groups[0]["lr"]
            seen.append((kd.term.temperature, objective.weights(step / STEPS), rate))  # type: ignore[attr-defined]

        program.start_step = start_step  # type: ignore[method-assign]

    run("logits", config, change=spy)
    assert [temperature for temperature, *_ in seen] == [4.0] * 6 + [1.5] * 12
    assert [weights for _, weights, _ in seen] == [pytest.approx([1.0, 0.1])] * 11 + [pytest.approx([0.2, 0.1])] * 7
    plain: list[float] = []
    _, recorder = run("logits", settings_with())
    plain = [record["learning_rate"] for record in recorder.records if record["kind"] == "train"]
    rates = [rate for *_, rate in seen]
    assert rates == pytest.approx([*plain[:6], *(0.4 * rate for rate in plain[6:])])


@pytest.mark.parametrize("kind", ["logits", "hidden"])
def test_a_state_taken_over_ends_like_the_whole_course(kind: str) -> None:
    """As members of a population do: other values from a state of a training that did not know of them."""
    match = {"distill.matches.0.weight": 3.0, "distill.matches.2.weight": 0.1} if kind == "hidden" else {}
    second = {"at": SECOND["at"], "values": SECOND["values"] | match}
    whole, wanted = run(kind, settings_with(FIRST, second), change=changing(kind, settings_with(FIRST, second)))
    alone, other = run(kind, settings_with(FIRST), change=changing(kind, settings_with(FIRST)))
    assert gap(whole, alone)[0] > 1e-4, "the second change matters"
    state = other.states.get(6)
    assert state is not None, "evaluated and saved after each epoch"
    # From a state before the change, which is that of either training.
    taken, rest = run(
        kind, settings_with(FIRST, second), change=changing(kind, settings_with(FIRST, second)),
        state=state, start_step=6,
    )  # fmt: skip
    assert gap(whole, taken)[0] == 0.0
    after = [losses_only(record) for record in wanted.records if record["step"] > 6]
    assert [losses_only(record) for record in rest.records] == after


def test_a_state_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    states, source = RunStates(tmp_path), tmp_path / "a"
    assert not states.copy("a", 4, "b"), "there is nothing yet"
    with MetricsLog(source / "metrics.jsonl") as log:
        for step in (2, 4, 6):
            log.write({"step": step, "kind": "eval", "eval/accuracy": 0.5})
    checkpoints = Checkpoints(source / "checkpoints", 3)
    for step in (4, 6):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    (source / "student").mkdir()
    (source / "student" / "config.json").write_text("{}")
    for _ in range(2):  # a second time does no harm
        assert states.copy("a", 4, "b")
        assert [record["step"] for record in read_metrics(tmp_path / "b" / "metrics.jsonl")] == [2, 4, 4]
        assert Checkpoints(tmp_path / "b" / "checkpoints", 1).load_newest() == (4, {"step": 4})
        assert (tmp_path / "b" / "student" / "config.json").is_file()
    assert checkpoints.steps() == [4, 6], "the source stays as it was"
    (path,) = (source / "checkpoints").glob("step-00000006.pt")
    path.write_bytes(b"broken")
    assert not states.copy("a", 6, "c"), "a damaged state is none"
    states.drop("a")
    assert checkpoints.steps() == []
