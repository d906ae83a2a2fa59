"""Functions of the user's that an experiment names: said before they are imported, checked before anything runs."""

from __future__ import annotations

from raybrew.config import Experiment, MultiTaskConfig
from raybrew.errors import ConfigError
from raybrew.losses.own import check_signature, load_own
from raybrew.verbs.prepare import Say

__all__ = ["check_functions"]


def check_functions(experiment: Experiment, say: Say) -> None:
    """Import functions of `distill` and forms of `store`, each told first; ConfigError lists what does not fit."""
    task = experiment.task
    kinds = [part.task.kind for part in task.tasks.values()] if isinstance(task, MultiTaskConfig) else [task.kind]
    named: list[tuple[str, str, tuple[str, ...] | None]] = []
    options = ("temperature", "scale_by_temperature_squared", *(["class_mask"] if "qa" in kinds else []))
    for key, part in experiment.distill.keyed_parts:
        if ":" in part.kd_loss.kind and part.kd_weight > 0:
            named.append((f"{key}.kd_loss.kind", part.kd_loss.kind, options))
        for index, match in enumerate(part.matches):
            if match.is_own and match.weight > 0:
                named.append((f"{key}.matches.{index}.loss", match.loss, ()))
    named += [(f"store.forms.{kind}", form, None) for kind, form in experiment.store.forms.items() if ":" in form]
    problems = []
    for key, target, wanted in named:
        say(f"{key}: imports {target}")
        try:
            function = load_own(target, key)
            if wanted is not None:
                check_signature(function, target, key, wanted)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems), tuple(problems))
