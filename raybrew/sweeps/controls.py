"""The controls of a sweep: what its students would be without a teacher, trained and searched as they are.

A control has the student's shape, its labelled rows and its amount of training: as many steps, evaluated as often, so
that its best checkpoint is the best of as many and early stopping may come after the same share of steps. Where the
students' optimisation varies (`train.learning_rate` and the like), the controls' does too: every listed value, and the
middles of three equal parts of a range. A student is compared with the control that is best on `data.eval`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raybrew.config import Experiment
from raybrew.config.controls import control_settings, is_shared
from raybrew.config.train import ChangeConfig
from raybrew.config.views import task_views
from raybrew.records.trials import CONTROL, KD_ONLY, TrialRecord, canonical
from raybrew.sweeps.jobs import Job, make_job, shape_of

__all__ = ["Controls", "StepsOf", "Variant"]

#: (candidate, control) -> keys of `train` by which the control takes the candidate's steps and evaluations.
StepsOf = Callable[[Experiment, Experiment], Mapping[str, Any]]

#: What a control does without, whatever its experiment says.
_ALONE: Mapping[str, Any] = {"method": None, "matches": [], "emd": None, "theseus": None, "stages": []}
#: Keys of `data` that a control from labels has no use for.
_UNLABELED = ("unlabeled", "unlabeled_rows", "augment")
#: Keys of `train.changes` that a control keeps.
_OWN_CHANGES: Mapping[str, tuple[str, ...]] = {
    CONTROL: ("train.learning_rate",),
    KD_ONLY: ("train.learning_rate", "distill.temperature", "distill.kd_weight"),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A control without its seed: `applied` is laid over the base experiment, `shown` are its values of the space."""

    role: str
    applied: dict[str, Any]
    shown: dict[str, Any]


class Controls:
    """Makes the controls of candidates. Those that agree in shape, rows and amount of training share theirs."""

    def __init__(self, base: Experiment, group: str, steps_of: StepsOf) -> None:
        assert base.sweep is not None
        self.base = base
        self.sweep = base.sweep
        self.group = group
        self.steps_of = steps_of
        self._first: dict[str, Job] = {}
        self._variants: dict[str, list[Variant]] = {}
        self._given: set[tuple[str, int, bool]] = set()

    def key_of(self, job: Job) -> str:
        """Equal for candidates with the same controls. The first of them decides how these start."""
        key = f"{shape_of(job)} {canonical(self._alike(job))}"
        self._first.setdefault(key, job)
        return key

    def jobs(self, job: Job, num_seeds: int, again: Mapping[str, TrialRecord] | None = None) -> list[Job]:
        """The controls of a candidate, each with so many seeds; nothing if they were asked for before.

        `again`: the trials so far, if the candidate is run again with more seeds. Of each role the best control by
        the seeds of the search is then run again too.
        """
        if not job.experiment.distill.trains_head:
            return []  # judged by a loss that a control does not have
        key = self.key_of(job)
        if (key, num_seeds, again is not None) in self._given:
            return []
        self._given.add((key, num_seeds, again is not None))
        chosen = self.variants(key) if again is None else self._best(self.variants(key), again)
        seeds = range(self.base.train.seed, self.base.train.seed + num_seeds)
        return [self.make(variant, seed, again is not None) for variant in chosen for seed in seeds]

    def _best(self, variants: Sequence[Variant], trials: Mapping[str, TrialRecord]) -> list[Variant]:
        seeds = range(self.base.train.seed, self.base.train.seed + self.sweep.seeds)

        def mean(variant: Variant) -> float:
            found = [trials.get(self.make(variant, seed).run) for seed in seeds]
            values = [trial.value for trial in found if trial is not None and trial.counts and trial.value is not None]
            return statistics.fmean(values) if values else float("-inf")

        roles = [[variant for variant in variants if variant.role == role] for role in (CONTROL, KD_ONLY)]
        return [max(of_role, key=mean) for of_role in roles if of_role]

    def variants(self, key: str) -> list[Variant]:
        """From labels alone, and with unlabelled rows from the teacher's logits alone, in each setting."""
        if key not in self._variants:
            job = self._first[key]
            settings = control_settings(self.sweep, job.values)
            found = [self._labels_only(job, setting) for setting in settings]
            if _unlabeled_places(job.experiment):
                found += [self._teacher_only(job, setting) for setting in settings]
            self._variants[key] = found
        return self._variants[key]

    def make(self, variant: Variant, seed: int, rerun: bool = False) -> Job:
        """The trial of a control with one seed."""
        made = make_job(self.base, variant.applied, seed, self.group, variant.role, rerun)
        return dataclasses.replace(made, values=variant.shown)

    def _labels_only(self, job: Job, setting: Mapping[str, Any]) -> Variant:
        places = _unlabeled_places(job.experiment)
        applied = self._applied(CONTROL, job, setting) | {
            "distill": {**_ALONE, "kd_weight": 0.0, "hard_label_weight": 1.0},
            **{f"{place}data.{key}": None for place in places for key in _UNLABELED},
        }
        if places:
            control = make_job(self.base, applied, job.seed, self.group).experiment
            applied |= self.steps_of(job.experiment, control)
        return Variant(CONTROL, applied, self._shown(job, setting))

    def _teacher_only(self, job: Job, setting: Mapping[str, Any]) -> Variant:
        distill = self.base.distill
        applied = self._applied(KD_ONLY, job, setting) | {
            "distill": {
                **_ALONE,
                "temperature": distill.temperature,
                "kd_weight": distill.kd_weight or 1.0,
                "hard_label_weight": 0.0,
            }
        }
        return Variant(KD_ONLY, applied, self._shown(job, setting))

    def _applied(self, role: str, job: Job, setting: Mapping[str, Any]) -> dict[str, Any]:
        # Those that a population made are its search, in place of which controls have settings.
        changes = (job.experiment if "train.changes" in self.sweep.space else self.base).train.changes
        own = _own_changes(changes, _OWN_CHANGES[role])
        return {
            "student": job.experiment.student.model_dump(mode="json"),
            **self._alike(job),
            **setting,
            **({"train.changes": own} if changes else {}),
        }

    def _shown(self, job: Job, setting: Mapping[str, Any]) -> dict[str, Any]:
        known = {key: value for key, value in job.values.items() if is_shared(key)} | dict(setting)
        return {key: known[key] for key in self.sweep.space if key in known}

    def _alike(self, job: Job) -> dict[str, Any]:
        """Values of the space in which a control equals the candidate, other than the student itself."""
        names = [key for key in self.sweep.space if is_shared(key) and key.split(".")[0] != "student"]
        return {key: job.values[key] for key in names if key in job.values}


def _own_changes(changes: Sequence[ChangeConfig], keys: Sequence[str]) -> list[dict[str, Any]]:
    """`train.changes` without what belongs to the teacher."""
    kept = [(change.at, {key: value for key, value in change.values.items() if key in keys}) for change in changes]
    return [{"at": at, "values": values} for at, values in kept if values]


def _unlabeled_places(experiment: Experiment) -> list[str]:
    """What stands before the keys of `data` of each task that has unlabelled rows."""
    return [
        f"task.tasks.{name}." if name else ""
        for _, name, view in task_views(experiment)
        if view.data.unlabeled is not None or view.data.augment is not None
    ]
