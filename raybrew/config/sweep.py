"""`sweep`: which settings are tried, how they are chosen, and what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_serializer, model_validator

from raybrew.catalog.schedulers import SCHEDULERS, Scheduler
from raybrew.catalog.searchers import SEARCHERS, Searcher
from raybrew.config.base import MAX_COUNT, MAX_CPUS, MAX_SEED, NOT_IDENTITY, WHEN_SET, Many, Section
from raybrew.config.outside import row_name, row_of
from raybrew.config.problems import near_match

__all__ = [
    "OBJECTIVES",
    "PARAMETER_KINDS",
    "BudgetConfig",
    "ParameterConfig",
    "RerunConfig",
    "ResourcesConfig",
    "SchedulerConfig",
    "SearchConfig",
    "SweepConfig",
]

#: How one key is varied.
PARAMETER_KINDS = {
    "choice": "one of these values, which may be whole sections",
    "grid": "each of these values, in a grid search; as `choice` elsewhere",
    "uniform": "a number between [low, high]",
    "loguniform": "a number between [low, high], each order of magnitude alike",
    "int": "a whole number from [low, high], both included",
}
OBJECTIVES = {
    "quality": "`task.metric` of the best checkpoint, as high as possible; where nothing trains the head its "
    "evaluation loss, as low as possible",
    "parameters": "number of the student's parameters, as low as possible",
    "megabytes": "size of the student's weights, as low as possible",
    "latency": "the student's time for one example divided by its teacher's, as low as possible; each trial times both "
    "in turn. Milliseconds if there is no teacher",
}

if TYPE_CHECKING:
    ParameterKind: TypeAlias = str
    ObjectiveName: TypeAlias = str
    SearcherName: TypeAlias = str
    SchedulerName: TypeAlias = str
else:
    ParameterKind = Literal[tuple(PARAMETER_KINDS)]
    ObjectiveName = Literal[tuple(OBJECTIVES)]
    SearcherName = Literal[tuple(SEARCHERS)] | row_name(Searcher)
    SchedulerName = Literal[tuple(SCHEDULERS)] | row_name(Scheduler)


class ParameterConfig(Section):
    """One key of the space, written `{choice: [1, 4, 8]}`, `{loguniform: [1e-5, 1e-3]}` or shortly `[1, 4, 8]`."""

    kind: ParameterKind
    values: Many[Any]
    when: dict[str, Any] = Field(default_factory=dict)

    @property
    def discrete(self) -> bool:
        """Whether `values` are the values themselves, not bounds."""
        return self.kind in ("choice", "grid")

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """A list of values, or a way to vary with its values."""
        if isinstance(value, list | tuple):
            return {"kind": "choice", "values": list(value)}
        if not isinstance(value, Mapping) or "kind" in value:
            return value
        kinds = [key for key in value if key in PARAMETER_KINDS]
        unknown = [str(key) for key in value if key not in PARAMETER_KINDS and key != "when"]
        if unknown:
            near = near_match(unknown[0], (*PARAMETER_KINDS, "when"))
            raise ValueError(f"one of {', '.join(PARAMETER_KINDS)}, and `when`{near}")
        if len(kinds) != 1:
            raise ValueError(f"exactly one of {', '.join(PARAMETER_KINDS)}")
        values = value[kinds[0]]
        if not isinstance(values, list | tuple):
            raise ValueError(f"{kinds[0]}: a list")
        return {"kind": kinds[0], "values": list(values), "when": value.get("when") or {}}

    @model_validator(mode="after")
    def _possible(self) -> ParameterConfig:
        if self.discrete:
            if not self.values:
                raise ValueError(f"{self.kind}: at least one value")
            if any(self.values.count(value) > 1 for value in self.values):
                raise ValueError(f"{self.kind}: values that differ from one another")
            return self
        numbers = [value for value in self.values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(self.values) != 2 or len(numbers) != 2 or not self.values[0] < self.values[1]:
            raise ValueError(f"{self.kind}: [low, high], two numbers that rise")
        if self.kind == "loguniform" and self.values[0] <= 0:
            raise ValueError("loguniform: bounds above 0")
        if self.kind == "int" and not all(isinstance(value, int) for value in self.values):
            raise ValueError("int: whole numbers")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        written: dict[str, Any] = {self.kind: list(self.values)}
        return written | ({"when": dict(self.when)} if self.when else {})


class SearchConfig(Section):
    """How configurations are chosen."""

    short: ClassVar[str] = "kind"
    kind: SearcherName = "random"
    """`raybrew list searchers` explains each."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the search; seeds of training follow `train.seed`."""
    objectives: Many[ObjectiveName] = ("quality",)
    """What `optuna` looks for; several give a Pareto front. `random` and `grid` do not depend on it."""
    startup_trials: int = Field(default=8, ge=1, le=10**5, json_schema_extra=NOT_IDENTITY)
    """Configurations that `optuna` draws at random before it starts to learn."""

    @property
    def row(self) -> Searcher:
        """The searcher: a row of the catalogue, or one of the user's."""
        return row_of(SEARCHERS, self.kind, "sweep.search.kind", Searcher)


class SchedulerConfig(Section):
    """Which trials are cut short, or replaced (`pbt`). Controls and re-runs of the best never are."""

    short: ClassVar[str] = "kind"
    kind: SchedulerName = "none"
    """`raybrew list schedulers` explains each."""
    grace: float = Field(default=0.25, gt=0, lt=1)
    """Share of its steps that a trial may always do (`asha`, `median`)."""
    reduction_factor: float = Field(default=2.0, gt=1, le=1000)
    """Of this many trials at a rung one goes on (`asha`)."""
    min_trials: int = Field(default=3, ge=1, le=10**5)
    """Trials that must have come as far before `median` stops one."""
    interval: float = Field(default=0.25, gt=0, lt=1, json_schema_extra=WHEN_SET)
    """Share of training between two rounds of `pbt`, each at the first evaluation after it."""
    quantile: float = Field(default=0.25, gt=0, le=0.5, json_schema_extra=WHEN_SET)
    """Share of members that each round of `pbt` replaces by as many of the best (at least one)."""
    resample: float = Field(default=0.25, ge=0, le=1, json_schema_extra=WHEN_SET)
    """Probability that `pbt` draws a value from the space anew; else it is multiplied by 0.8 or 1.2, or, of listed
    values, becomes a neighbour."""
    mutations: Many[str] | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Keys of the space that `pbt` changes. Default: all."""

    @property
    def row(self) -> Scheduler:
        """The scheduler: a row of the catalogue, or one of the user's."""
        return row_of(SCHEDULERS, self.kind, "sweep.scheduler.kind", Scheduler)


class RerunConfig(Section):
    """More seeds for the best configurations, so that luck is told from merit."""

    count: int = Field(default=0, ge=0, le=10**5)
    """How many of the best are run again, and compared by these further seeds alone."""
    seeds: int = Field(default=3, ge=2, le=1000)
    """Seeds that each of them has in the end."""


class BudgetConfig(Section):
    """Limits of the whole sweep. What runs when one is reached is stopped and can be continued by a larger one."""

    wall_minutes: float | None = Field(default=None, gt=0, le=MAX_COUNT)
    """Minutes from start to end, added over continuations."""
    gpu_hours: float | None = Field(default=None, gt=0, le=MAX_COUNT)
    """Hours of all trials times the GPUs of all their workers; interrupted, killed and failed parts count."""
    money: float | None = Field(default=None, gt=0, le=1e15)
    """Hours of all trials, on GPUs or not, times `price_per_hour`."""
    price_per_hour: float | None = Field(default=None, ge=0, le=1e15)
    """What an hour of one trial costs: all its workers, their CPUs and GPUs together."""
    failures: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """Failed trials that are put up with; one more ends the sweep."""


class ResourcesConfig(Section):
    """What one trial of one worker reserves. More workers take `train.cpus_per_worker` each, and a GPU each."""

    cpus: float = Field(default=1, gt=0, le=MAX_CPUS)
    """CPUs."""
    gpus: float | None = Field(default=None, ge=0, le=MAX_CPUS)
    """GPUs; a fraction lets several trials share one, 0 trains on CPUs. Default: 1 where the cluster has GPUs and
    `train.device` is not cpu."""


class SweepConfig(Section):
    """What `raybrew sweep` tries. `quality` is `task.metric`, or, where nothing trains the head, minus the evaluation
    loss; trials are runs of `raybrew distill`.

    Example:
        >>> raybrew.SweepConfig(space={"distill.temperature": [1, 4, 8]}, search="grid").search.kind
        'grid'
    """

    space: dict[str, ParameterConfig] = Field(default_factory=dict)
    """Dotted key -> its values: `distill.temperature: [1, 4, 8]`, `train.learning_rate: {loguniform: [1e-5, 1e-3]}`,
    `student.init: {choice: [teacher, random], when: {student.shape: T3}}`. Values may be whole sections."""
    exclude: Many[dict[str, Any]] = ()
    """Combinations that are left out: a list of {key: value or list of values}."""
    search: SearchConfig = SearchConfig()
    """How configurations are chosen: random, grid or optuna."""
    trials: int | None = Field(default=None, ge=1, le=10**5, json_schema_extra=NOT_IDENTITY)
    """Configurations to try; members of the population of `pbt`. Default: all of a grid, else 16."""
    seeds: int = Field(default=1, ge=1, le=1000, json_schema_extra=NOT_IDENTITY)
    """Seeds per configuration: train.seed, train.seed + 1, ..."""
    rerun_best: RerunConfig = Field(default=RerunConfig(), json_schema_extra=NOT_IDENTITY)
    """More seeds for the best."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Which trials are cut short or replaced: none, asha, median or pbt."""
    controls: bool = Field(default=True, json_schema_extra=NOT_IDENTITY)
    """Train each student shape without a teacher as well, and with unlabelled rows from the teacher alone: for as many
    steps and evaluations, at several learning rates where the students' varies."""
    budget: BudgetConfig = Field(default=BudgetConfig(), json_schema_extra=NOT_IDENTITY)
    """Limits of time, cost and failures."""
    resources: ResourcesConfig = Field(default=ResourcesConfig(), json_schema_extra=NOT_IDENTITY)
    """What one trial reserves."""
    concurrency: int | None = Field(default=None, ge=1, le=10**5, json_schema_extra=NOT_IDENTITY)
    """Trials at the same time at most. Default: as many as the cluster has room for."""
    keep_students: int = Field(default=3, ge=1, le=10**5, json_schema_extra=NOT_IDENTITY)
    """Students of the best configurations that stay on disk; the weights of the others are removed at the end, and
    trained again when a continued sweep comes to need them."""
    warm_start: str | None = None
    """Folder of an older sweep, perhaps with another space: what it found there is where this one starts."""

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """Keys of the space that are nested, as overrides make them, by their dotted names."""
        value = super().long_form(value)
        if not isinstance(value, Mapping):
            return value
        spaces = {"space": dict(_dotted(value["space"]))} if isinstance(value.get("space"), Mapping) else {}
        return {**value, **spaces}

    @field_validator("space")
    @classmethod
    def _keys(cls, space: dict[str, ParameterConfig]) -> dict[str, ParameterConfig]:
        overlapping = [(one, two) for one in space for two in space if two.startswith(f"{one}.")]
        if overlapping:
            one, two = overlapping[0]
            raise ValueError(f"either {one} or {two}, as one holds the other")
        for key, parameter in space.items():
            unknown = [name for name in parameter.when if name not in space]
            if unknown:
                raise ValueError(f"{key}.when: keys of the space ({', '.join(space)}){near_match(unknown[0], space)}")
            order = list(space)
            late = [name for name in parameter.when if order.index(name) >= order.index(key)]
            if late:
                raise ValueError(f"{key}.when: keys that stand before it; move {late[0]} up")
        return space


def _dotted(space: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """A space written with nested keys (as overrides make them) by its dotted ones."""
    found: list[tuple[str, Any]] = []
    for key, value in space.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not any(_like_a_kind(str(inner)) for inner in value):
            found += _dotted(value, f"{name}.")
            continue
        found.append((name, value))
    return found


def _like_a_kind(name: str) -> bool:
    """Whether `name` is, or is meant as, a way to vary a key."""
    return name in ("kind", "when") or name in PARAMETER_KINDS or bool(near_match(name, PARAMETER_KINDS))
