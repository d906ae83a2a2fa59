"""Which configurations are tried: at random, all of a grid, or where Optuna expects the best."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from raybrew.catalog.target import load_target
from raybrew.config.space import corner_count, corners, is_active, is_excluded
from raybrew.config.sweep import ParameterConfig, SweepConfig
from raybrew.sweeps.jobs import canonical

__all__ = [
    "DIRECTIONS",
    "Optuna",
    "Source",
    "build_source",
    "draw",
    "draw_value",
    "grid_source",
    "optuna_distribution",
    "optuna_params",
    "random_source",
    "readable",
]

#: Draws in a row that constraints or repetition may use up before a space counts as exhausted.
_PATIENCE = 300
#: Questions to Optuna for one configuration; after that one is drawn.
_ASKS = 30
#: Objective -> the direction in which it is better.
DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "quality": "maximize",
    "parameters": "minimize",
    "megabytes": "minimize",
    "latency": "minimize",
}


class Source(Protocol):
    """Gives configurations one by one."""

    exact: bool
    """Whether `repeat` found what was asked before, so that a continued search does as an unbroken one."""

    def next(self, known: Collection[str]) -> dict[str, Any] | None:
        """The next configuration that is not in `known` (canonical texts); None when there is none left."""
        ...

    def tell(self, values: Mapping[str, Any], objectives: Sequence[float] | None) -> None:
        """What came of a configuration; None for one that failed."""
        ...

    def repeat(self, values: Mapping[str, Any], known: Collection[str]) -> None:
        """An earlier session got `values` from `next(known)`: take the same step again."""
        ...


def build_source(sweep: SweepConfig) -> Source:
    """The source that `sweep.search` names."""
    source: Source = load_target(sweep.search.row.target)(sweep)
    return source


def random_source(sweep: SweepConfig) -> Source:
    """Configurations drawn at random."""
    return Listed(_random(sweep))


def grid_source(sweep: SweepConfig) -> Source:
    """Every combination of the values."""
    return Listed(_grid(sweep))


class Listed:
    """Configurations in an order that no result changes: those that are known are passed over."""

    def __init__(self, values: Iterator[dict[str, Any]]) -> None:
        self.exact = True
        self._values = values

    def next(self, known: Collection[str]) -> dict[str, Any] | None:
        for repeated, values in enumerate(self._values):
            if canonical(values) not in known:
                return values
            # Drawing at random from what is used up would never end; a list that was done before is walked through.
            if repeated >= _PATIENCE + len(known):
                return None
        return None

    def tell(self, values: Mapping[str, Any], objectives: Sequence[float] | None) -> None:
        return None

    def repeat(self, values: Mapping[str, Any], known: Collection[str]) -> None:
        return None


def draw(sweep: SweepConfig, index: int) -> dict[str, Any] | None:
    """The `index`-th random configuration: a function of (sweep.search.seed, index). None if constraints forbid all."""
    for attempt in range(_PATIENCE):
        rng = random.Random(f"{sweep.search.seed} {index} {attempt}")
        values: dict[str, Any] = {}
        for key, parameter in sweep.space.items():
            if is_active(parameter, values):
                values[key] = draw_value(parameter, rng)
        if not is_excluded(sweep, values):
            return values
    return None


def draw_value(parameter: ParameterConfig, rng: random.Random) -> Any:
    """A value of one key at random."""
    if parameter.discrete:
        return rng.choice(parameter.values)
    low, high = parameter.values
    if parameter.kind == "int":
        return rng.randint(low, high)
    if parameter.kind == "loguniform":
        return readable(math.exp(rng.uniform(math.log(low), math.log(high))), low, high)
    return readable(rng.uniform(low, high), low, high)


def readable(value: float, low: float, high: float) -> float:
    """Four digits are more than any search can tell apart."""
    return float(min(max(float(f"{value:.4g}"), low), high))


def _random(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    index = 0
    while (values := draw(sweep, index)) is not None:
        yield values
        index += 1


def _grid(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    yield from corners(sweep, limit=corner_count(sweep))


class Optuna:
    """Optuna's TPE behind ask and tell; values of a choice stand for themselves, whatever they are.

    Its random numbers depend on everything that it was asked and told before. A continued sweep therefore repeats all
    of it. Where that does not give the same values (another version of optuna, another `startup_trials`), they are
    noted as asked all the same, and the search goes on from its results with other random numbers.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep = sweep
        self.exact = True
        self.study = optuna.create_study(
            directions=[DIRECTIONS[name] for name in sweep.search.objectives], sampler=self._sampler(0)
        )
        self._asked: dict[str, Any] = {}
        self._told: set[str] = set()

    def _sampler(self, repeated: int) -> Any:
        import optuna

        search = self.sweep.search
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=search.seed + repeated, n_startup_trials=search.startup_trials, constant_liar=True
            )

    def next(self, known: Collection[str]) -> dict[str, Any] | None:
        import optuna

        for _ in range(_ASKS):
            trial, values = self._ask()
            if not is_excluded(self.sweep, values) and canonical(values) not in known:
                self._asked[canonical(values)] = trial
                return values
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        # Where `exclude` forbids most of the space, the sampler may ask for nothing else. One that is left, at random.
        drawn = (draw(self.sweep, index) for index in range(_PATIENCE + len(known)))
        left = next((one for one in drawn if one is not None and canonical(one) not in known), None)
        return None if left is None else self._enqueue(left)

    def _enqueue(self, values: dict[str, Any]) -> dict[str, Any] | None:
        """Ask the study for just these values; None if they lie outside of its space."""
        found = optuna_params(self.sweep, values)
        if found is not None:
            self.study.enqueue_trial(found[0])
            self._asked[canonical(values)] = self._ask()[0]
        return None if found is None else values

    def _ask(self) -> tuple[Any, dict[str, Any]]:
        trial = self.study.ask()
        values: dict[str, Any] = {}
        for key, parameter in self.sweep.space.items():
            if is_active(parameter, values):
                values[key] = _suggest(trial, key, parameter)
        return trial, values

    def repeat(self, values: Mapping[str, Any], known: Collection[str]) -> None:
        """Values that this study does not ask for are noted as asked, and `exact` is False from then on."""
        if self.exact:
            asked = self.next(known)
            if asked is not None and canonical(asked) == canonical(values):
                return
            self.exact = False
            if asked is not None:
                self.tell(asked, None)
        if self._enqueue(dict(values)) is None:
            return  # one of an older sweep with another space, or of another version of this one
        self.study.sampler = self._sampler(len(self.study.trials))

    def tell(self, values: Mapping[str, Any], objectives: Sequence[float] | None) -> None:
        """Also of configurations that this study did not ask for; those outside of its space are passed over.

        A configuration counts once: what further seeds of it reach is no news of the space.
        """
        import optuna

        key = canonical(values)
        asked = self._asked.pop(key, None)
        if asked is None and key in self._told:
            return
        if objectives is not None:
            self._told.add(key)
        state = optuna.trial.TrialState.COMPLETE if objectives is not None else optuna.trial.TrialState.FAIL
        if asked is not None:
            self.study.tell(asked, objectives, state=state)
            return
        if objectives is None:
            return
        found = optuna_params(self.sweep, values)
        if found is not None:
            params, distributions = found
            self.study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, values=list(objectives))
            )


def optuna_params(sweep: SweepConfig, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """`values` and their distributions in Optuna's terms; None if they lie outside of the space."""
    active: dict[str, Any] = {}
    for key, parameter in sweep.space.items():
        if not is_active(parameter, active):
            continue
        if key not in values or not _within(parameter, values[key]):
            return None
        active[key] = values[key]
    if set(values) - set(active) or is_excluded(sweep, active):
        return None
    params = {key: canonical_value(sweep.space[key], value) for key, value in active.items()}
    return params, {key: optuna_distribution(sweep.space[key]) for key in active}


def optuna_distribution(parameter: ParameterConfig) -> Any:
    """The parameter as one of Optuna's distributions; values of a choice as JSON."""
    import optuna

    if parameter.discrete:
        return optuna.distributions.CategoricalDistribution([json.dumps(value) for value in parameter.values])
    low, high = parameter.values
    if parameter.kind == "int":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=parameter.kind == "loguniform")


def canonical_value(parameter: ParameterConfig, value: Any) -> Any:
    """What stands for `value` in that distribution."""
    if parameter.discrete:
        return json.dumps(parameter.values[parameter.values.index(value)])
    return value


def _within(parameter: ParameterConfig, value: Any) -> bool:
    if parameter.discrete:
        return value in parameter.values
    low, high = parameter.values
    return isinstance(value, int | float) and low <= value <= high


def _suggest(trial: Any, key: str, parameter: ParameterConfig) -> Any:
    if parameter.discrete:
        chosen = trial.suggest_categorical(key, [json.dumps(value) for value in parameter.values])
        return next(value for value in parameter.values if json.dumps(value) == chosen)
    low, high = parameter.values
    if parameter.kind == "int":
        return trial.suggest_int(key, low, high)
    return readable(trial.suggest_float(key, low, high, log=parameter.kind == "loguniform"), low, high)
