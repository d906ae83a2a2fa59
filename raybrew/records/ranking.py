"""The one rule by which a sweep chooses its best configuration and the run whose student it recommends.

What a sweep keeps and exports, what `show`, the report, `SweepResult.best()` and W&B name, all follow `ranking`. It
needs the values in the ledger, and numbers of parameters where two configurations are equally good.

A configuration is chosen by the seeds of the search. If it is run again with more seeds (`sweep.rerun_best`), the
value that it was chosen for is high partly by luck, so only the further seeds count from then on.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from raybrew.config.judge import quality
from raybrew.records.summary import read_summary
from raybrew.records.sweeps import SweepRecord
from raybrew.records.trials import CANDIDATE, CONTROL, KD_ONLY, TrialRecord, canonical

__all__ = [
    "BEST",
    "BEST_MARK",
    "Parameters",
    "Standing",
    "best_mark",
    "parameters_in",
    "ranking",
    "recommended",
    "standings",
]

#: A run -> the number of its student's parameters.
Parameters = Callable[[str], float]
_DIGITS = 12
#: Folder of a sweep that holds a copy of the recommended student.
BEST = "best"
#: File in it that names the run, its configuration and its value.
BEST_MARK = "best.json"


@dataclasses.dataclass(frozen=True)
class Standing:
    """A configuration with all its seeds that have a value, in the order of seeds."""

    values: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    judge: str | None = None
    """The metric that values of trials are of, or LOSS; None if they are qualities, of which more is better."""

    @property
    def chosen_by(self) -> tuple[TrialRecord, ...]:
        """Seeds of the search, by which configurations are chosen to be run again."""
        return tuple(trial for trial in self.trials if not trial.rerun)

    @property
    def further(self) -> tuple[TrialRecord, ...]:
        """Seeds that it got because it had been chosen."""
        return tuple(trial for trial in self.trials if trial.rerun)

    @property
    def counted(self) -> tuple[TrialRecord, ...]:
        """Seeds whose mean is compared and shown: the further ones if there are any."""
        return self.further or self.trials

    @property
    def mean(self) -> float:
        """What trials are judged by, mean of `counted`."""
        return _mean(self.counted)

    def quality(self, trials: tuple[TrialRecord, ...]) -> float:
        """The mean of `trials` as a number of which more is better."""
        return _quality(self.judge, _mean(trials))

    @property
    def run(self) -> str:
        """The run whose student stands for the configuration: of all its seeds the best on `data.eval`."""
        return max(self.trials, key=lambda trial: (_quality(self.judge, trial.value or 0.0), -trial.seed)).run

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(trial.run for trial in self.trials)


def standings(trials: Iterable[TrialRecord], role: str = CANDIDATE, judge: str | None = None) -> list[Standing]:
    """Configurations of this role with a value, in the order in which they were tried. `judge`: see Standing."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.role == role and trial.counts and trial.value is not None:
            found.setdefault(canonical(trial.values), []).append(trial)
    return [Standing(group[0].values, tuple(sorted(group, key=lambda t: t.seed)), judge) for group in found.values()]


def ranking(
    trials: Iterable[TrialRecord],
    parameters: Parameters,
    role: str = CANDIDATE,
    *,
    to_rerun: bool = False,
    judge: str | None = None,
) -> list[Standing]:
    """Configurations from best to worst.

    Those that were run again come first, as the others have no value that did not choose them. `to_rerun` ranks by the
    seeds of the search alone, so that a sweep that is continued chooses the same configurations to run again.
    """
    found = standings(trials, role, judge)
    if to_rerun:
        found = [standing for standing in found if standing.chosen_by]
    keys = {
        id(standing): (0, -standing.quality(standing.chosen_by))
        if to_rerun
        else (not standing.further, -standing.quality(standing.counted))
        for standing in found
    }
    equal = Counter(keys.values())

    def place(standing: Standing) -> tuple[Any, ...]:
        key = keys[id(standing)]
        return *key, parameters(standing.trials[0].run) if equal[key] > 1 else 0.0

    return sorted(found, key=place)


def recommended(record: SweepRecord) -> Standing | None:
    """The best configuration of the search; the best control if nothing else has finished."""
    parameters = parameters_in(record.folder.parent)
    for role in (CANDIDATE, CONTROL, KD_ONLY):
        found = ranking(record.trials, parameters, role, judge=record.metric)
        if found:
            return found[0]
    return None


def parameters_in(folder: Path) -> Parameters:
    """Parameters of runs below `folder` as their summaries tell; 0 where one does not."""

    def parameters(run: str) -> float:
        summary = read_summary(folder / run)
        return float((None if summary is None else summary.student.parameters) or 0)

    return parameters


def best_mark(folder: Path) -> dict[str, Any] | None:
    """What the folder `best` says of the student that it holds; None if it does not (older versions wrote no mark)."""
    try:
        mark = json.loads((folder / BEST_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    run = mark.get("run") if isinstance(mark, dict) else None
    # The name of a folder beside the sweep's, and no path out of there.
    return mark if isinstance(run, str) and run not in ("", "..") and Path(run).name == run else None


def _quality(judge: str | None, value: float) -> float:
    return value if judge is None else quality(judge, value)


def _mean(trials: tuple[TrialRecord, ...]) -> float:
    # Equal means over other seeds differ in the last digits of floating point numbers.
    return round(statistics.fmean(trial.value for trial in trials if trial.value is not None), _DIGITS)
