"""What the trials of a sweep are ranked by: all of them by one metric, or all by one evaluation loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raybrew.config.distill import DistillConfig
from raybrew.config.experiment import Experiment
from raybrew.config.judge import LOSS
from raybrew.config.space import apply_values, corners
from raybrew.config.sweep import SweepConfig
from raybrew.config.values import show_value_of
from raybrew.errors import Problem

__all__ = ["check_judges", "judge_notes", "sweep_judge"]


def sweep_judge(experiment: Experiment) -> str:
    """`task.metric`, or LOSS where no configuration of its sweep trains the head."""
    headless, others = _corners(experiment)
    return LOSS if headless and not others else experiment.task.metric


def judge_notes(experiment: Experiment) -> list[str]:
    """What a user should know of it before a valid sweep starts."""
    if experiment.sweep is None or sweep_judge(experiment) != LOSS:
        return []
    return [
        "warning: no configuration trains the task's head in its last stage, so trials are ranked by their evaluation "
        "loss, the lowest first, and there are no controls, which have no such loss"
    ]


def check_judges(experiment: Experiment) -> list[Problem]:
    """What keeps the trials of a sweep, whose corners are valid, from being ranked.

    Whether their losses are the same is known when their models are: `raybrew.sweeps.prepare` looks.
    """
    sweep = experiment.sweep
    assert sweep is not None
    headless, others = _corners(experiment)
    if not headless:
        return []
    if others:
        shared = {key: value for key, value in headless[0].items() if all(one.get(key) == value for one in headless)}
        named = ", ".join(
            f"{key}={show_value_of(value)}"
            for key, value in shared.items()
            if any(one.get(key) != value for one in others)
        )
        count = f"{len(headless)} of {len(headless) + len(others)} corners{' (' + named + ')' if named else ''}"
        text = (
            f"{count} do not train the task's head in their last stage and would be judged by their evaluation loss, "
            f"the others by {experiment.task.metric}; the two cannot be ranked together: give kd_weight or "
            "hard_label_weight above 0 to the last stage of all configurations, or of none"
        )
        return [Problem("sweep.space", text, "conflict")]
    problems = []
    if sweep.warm_start is not None:
        text = (
            "given, but trials are judged by their evaluation loss, which does not compare with that of another sweep"
        )
        problems.append(Problem("sweep.warm_start", text, "conflict"))
    if sweep.scheduler.row.rounds:
        problems += [
            Problem(
                f"sweep.space.{key}",
                "would change the evaluation loss by which members are judged; leave it out",
                "conflict",
            )
            for key in sweep.space
            if key.startswith("distill.")
        ]
    return problems


def _corners(experiment: Experiment) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Corners that train no head, and the others."""
    sweep = experiment.sweep
    assert sweep is not None
    if not any(key.split(".")[0] == "distill" for key in sweep.space):
        return ([], [{}]) if experiment.distill.trains_head else ([{}], [])
    plain = experiment.written()
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for values in corners(sweep):
        if _is_drawn(sweep, values):
            distill = DistillConfig.model_validate(apply_values(plain, values)["distill"])
            found[distill.trains_head].append(values)
    return found


def _is_drawn(sweep: SweepConfig, values: Mapping[str, Any]) -> bool:
    """Whether a corner is like what is tried: a weight drawn from a range is never just 0, its bound."""
    return not any(sweep.space[key].kind == "uniform" and value == 0 for key, value in values.items())
