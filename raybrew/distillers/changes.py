"""`train.changes` in the objective: weights of terms and the temperature as functions of the progress of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from raybrew.config.changes import changed_distill, value_at
from raybrew.config.distill import DistillConfig
from raybrew.config.train import TrainConfig
from raybrew.distillers.objective import Objective

__all__ = ["with_changes"]


def with_changes(
    objective: Objective,
    distill: DistillConfig,
    train: TrainConfig,
    match_weights: Callable[[DistillConfig], Mapping[str, float]],
) -> Objective:
    """`objective`, made of `distill`, whose terms follow `train.changes`.

    `match_weights` gives the weight of each match's term by its name.
    """
    configs = [(0.0, distill)]
    for change in train.changes:
        configs.append((change.at, changed_distill(configs[-1][1], change.values)))
    weights = [(at, {**_weights(config), **match_weights(config)}) for at, config in configs]
    temperatures = [(at, config.temperature) for at, config in configs]
    terms = []
    for term in objective.terms:
        course = [(at, found[term.name] / term.weight) for at, found in weights]
        if any(factor != 1.0 for _, factor in course):
            term = dataclasses.replace(term, schedule=_Course(course))
        if term.name == "kd" and len({temperature for _, temperature in temperatures}) > 1:
            term = dataclasses.replace(term, temperature=_Course(temperatures))
        terms.append(term)
    (stage,) = objective.stages  # what changes has one stage, see `check_changes`
    objective.stages = (dataclasses.replace(stage, terms=tuple(terms)),)
    return objective


@dataclasses.dataclass(frozen=True)
class _Course:
    """Progress of training in [0, 1] -> what is in force there."""

    course: list[tuple[float, float]]

    def __call__(self, progress: float) -> float:
        return value_at(self.course, progress)


def _weights(config: DistillConfig) -> dict[str, float]:
    """Weights by the names that `build_objective` gives to terms."""
    found = {"kd": config.kd_weight, "label": config.hard_label_weight}
    if config.emd is not None:
        found |= dict.fromkeys(("emd.hidden", "emd.embeddings"), config.emd.hidden)
        found["emd.attention"] = config.emd.attention
    return found
