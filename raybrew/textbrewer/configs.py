"""`TrainingConfig`, `DistillationConfig`, `CustomMatch`: TextBrewer's settings, checked when made, never changed.

All problems of a configuration are raised at once as ConfigError. Names of losses, projections and schedules are looked
up when a distiller is built, after which `register_new` comes too late for it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from raybrew.config.problems import near_match, raise_problems
from raybrew.errors import ConfigError, Problem

__all__ = [
    "FEATURES",
    "CustomMatch",
    "DistillationConfig",
    "IntermediateMatch",
    "TrainingConfig",
    "resolve_module",
]

#: Kinds of layers that matches compare; adaptors return lists under these names.
FEATURES = ["hidden", "attention"]

C = TypeVar("C", bound="ClosedConfig")


class ClosedConfig:
    """A frozen dataclass whose unknown arguments are ConfigErrors with a near match."""

    def __new__(cls: type[C], *args: Any, **given: Any) -> C:
        fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # subclasses are dataclasses
        problems = [
            Problem(name, f"unknown key (given {value!r}); allowed: {', '.join(fields)}{near_match(name, fields)}")
            for name, value in given.items()
            if name not in fields
        ]
        if args or given:  # copying and unpickling give nothing here
            problems += [
                Problem(field.name, "required, but not given")
                for field in dataclasses.fields(cls)[len(args) :]  # type: ignore[arg-type]
                if field.default is dataclasses.MISSING and field.name not in given
            ]
        raise_problems(cls.__name__, problems)
        return super().__new__(cls)

    @classmethod
    def from_dict(cls: type[C], dict_object: Mapping[str, Any]) -> C:
        """The configuration with the values of a mapping."""
        if not isinstance(dict_object, Mapping):
            raise ConfigError(f"{cls.__name__}.from_dict takes a mapping, given {type(dict_object).__name__}")
        return cls(**dict_object)

    @classmethod
    def from_json_file(cls: type[C], json_filename: str | Path) -> C:
        """The configuration in a JSON file; ConfigError names the file."""
        try:
            values = json.loads(Path(json_filename).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{json_filename}: cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{json_filename}: expected a JSON object, found {type(values).__name__}")
        return cls.from_dict(values)

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if isinstance(value, tuple) and value and isinstance(value[0], IntermediateMatch):
                value = "".join(f"\n  {match}" for match in value)
            lines.append(f"{field.name} : {value}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, repr=False)
class TrainingConfig(ClosedConfig):
    """How a model is trained, where its weights and logs go.

    `ckpt_frequency` times an epoch, in every `ckpt_epoch_frequency`-th epoch, the weights are written to
    `<output_dir>/gs<step>.pkl`; when `train` is given `num_steps`, every `ckpt_steps` steps instead. The last step is
    always written. Folders are made when something is written to them.
    """

    gradient_accumulation_steps: int = 1
    ckpt_frequency: int = 1
    ckpt_epoch_frequency: int = 1
    ckpt_steps: int | None = None
    log_dir: str | Path | None = None  #: TensorBoard; None = off
    output_dir: str | Path = "./saved_models"
    device: Any = "auto"  #: "cpu", "cuda", "cuda:1", a torch.device; "auto": where the student is
    fp16: bool = False  #: mixed precision by torch.amp
    fp16_opt_level: str = "O1"  #: Apex's levels: O0 is float32, all others are torch.amp
    data_parallel: bool = False
    local_rank: int = -1  #: >= 0: one of several processes of an initialised torch.distributed group
    log_steps: int = 10  #: losses are read from the device, checked and logged every so many steps
    resume: bool = False  #: keep the full training state in `<output_dir>/state`; go on from it when it is there

    def __post_init__(self) -> None:
        problems = []
        for name in ("gradient_accumulation_steps", "ckpt_frequency", "ckpt_epoch_frequency", "log_steps"):
            problems += _whole(name, getattr(self, name), least=1)
        if self.ckpt_steps is not None:
            problems += _whole("ckpt_steps", self.ckpt_steps, least=1)
        problems += _whole("local_rank", self.local_rank, least=-1)
        for name in ("fp16", "data_parallel", "resume"):
            problems += _truth(name, getattr(self, name))
        if self.fp16_opt_level not in ("O0", "O1", "O2", "O3"):
            problems.append(Problem("fp16_opt_level", f"given {self.fp16_opt_level!r}; allowed: O0, O1, O2, O3"))
        given: Any = self.output_dir
        if not isinstance(given, (str, Path)):
            problems.append(Problem("output_dir", f"given {given!r}; allowed: a path"))
        given = self.log_dir
        if not isinstance(given, (str, Path, type(None))):
            problems.append(Problem("log_dir", f"given {given!r}; allowed: a path, or None for no TensorBoard"))
        if self.data_parallel is True and _is_whole(self.local_rank) and self.local_rank >= 0:
            problems.append(Problem("data_parallel", "excludes local_rank >= 0: one process, or one for each device"))
        raise_problems("TrainingConfig", problems)

    def __repr__(self) -> str:
        return f"TrainingConfig:\n{self}"


@dataclasses.dataclass(frozen=True)
class IntermediateMatch(ClosedConfig):
    """A loss between one layer of each model, or two of each for `gram` and `mmd`; indices into the adaptor's lists.

    `proj`: [kind, student dim, teacher dim] or with a fourth item, options of its optimizer group such as lr.
    `teacher`: which one, in a MultiTeacherDistiller.
    """

    layer_T: int | tuple[int, ...]
    layer_S: int | tuple[int, ...]
    feature: str
    loss: str
    weight: float
    proj: tuple[Any, ...] | None = None
    teacher: int = 0

    @property
    def name(self) -> str:
        """`hidden_mse.1-4`: student layer 1 with teacher layer 4."""
        sides = ("+".join(map(str, _layers(layer))) for layer in (self.layer_S, self.layer_T))
        return f"{self.loss}.{'-'.join(sides)}" + (f".teacher{self.teacher}" if self.teacher else "")

    def problems(self, key: str) -> list[Problem]:
        """All that is wrong with the match, under `key`."""
        found: list[Problem] = []
        for name in ("layer_T", "layer_S"):
            layers = _layers(getattr(self, name))
            if len(layers) not in (1, 2) or not all(_is_whole(layer) for layer in layers):
                found.append(
                    Problem(f"{key}.{name}", f"given {getattr(self, name)!r}; allowed: a layer number, or two of them")
                )
        if isinstance(self.layer_T, tuple) != isinstance(self.layer_S, tuple):
            found.append(Problem(f"{key}.layer_S", "one layer on one side and two on the other"))
        if self.feature not in FEATURES:
            near = near_match(str(self.feature), FEATURES)
            found.append(Problem(f"{key}.feature", f"given {self.feature!r}; allowed: {', '.join(FEATURES)}{near}"))
        loss: Any = self.loss
        if not isinstance(loss, str):
            found.append(Problem(f"{key}.loss", f"given {loss!r}; allowed: a name in MATCH_LOSS_MAP"))
        found += _number(f"{key}.weight", self.weight, least=0.0)
        found += _whole(f"{key}.teacher", self.teacher, least=0)
        if self.proj is not None:
            proj = self.proj
            fits = (
                len(proj) in (3, 4)
                and isinstance(proj[0], str)
                and all(_is_whole(dim) and dim > 0 for dim in proj[1:3])
                and all(isinstance(options, Mapping) for options in proj[3:])
            )
            if not fits:
                found.append(
                    Problem(
                        f"{key}.proj",
                        f"given {list(proj)!r}; allowed: [kind, student dim, teacher dim], then perhaps a dict of "
                        "options of its optimizer group",
                    )
                )
        return found

    @classmethod
    def of(cls, value: Any) -> IntermediateMatch:
        """The match that a mapping describes, lists made tuples."""
        if isinstance(value, IntermediateMatch):
            return value
        values: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        if not values.get("proj"):  # TextBrewer takes [] for none as well
            values.pop("proj", None)
        return cls(**values)


@dataclasses.dataclass(frozen=True, repr=False)
class DistillationConfig(ClosedConfig):
    """What is distilled: total = kd_loss_weight * KD + hard_label_weight * sum(losses) + sum(weight_i * match_i).

    Schedulers are `none`, a name, or a list of a name and its parameters: `["flsw", 1, 2]` (beta, gamma),
    `["cwsm", 1]`, `["flsw", {"beta": 1, "gamma": 2}]`. Weight schedulers give a factor on the configured weight.
    """

    temperature: float = 4
    temperature_scheduler: Any = "none"
    hard_label_weight: float = 0
    hard_label_weight_scheduler: Any = "none"
    kd_loss_type: Any = "ce"  #: a name in KD_LOSS_MAP, or with options: ["js", {"beta": 0.3}]
    kd_loss_weight: float = 1
    kd_loss_weight_scheduler: Any = "none"
    probability_shift: bool = False
    intermediate_matches: Any = None  #: list of dicts; kept as a tuple of IntermediateMatch
    is_caching_logits: bool = False  #: keep the batches and what the teacher said of them in memory
    scale_by_temperature_squared: bool = False  #: multiply KD by T^2, so that its gradient does not fall as T rises

    def __post_init__(self) -> None:
        problems = _number("temperature", self.temperature, above=0.0)
        problems += _number("hard_label_weight", self.hard_label_weight, least=0.0)
        problems += _number("kd_loss_weight", self.kd_loss_weight, least=0.0)
        for name in ("probability_shift", "is_caching_logits", "scale_by_temperature_squared"):
            problems += _truth(name, getattr(self, name))
        for name in (
            "temperature_scheduler",
            "hard_label_weight_scheduler",
            "kd_loss_weight_scheduler",
            "kd_loss_type",
        ):
            value = getattr(self, name)
            named = tuple(value) if isinstance(value, (list, tuple)) else ("none" if value is None else value,)
            if not named or not isinstance(named[0], str):
                problems.append(Problem(name, f"given {value!r}; allowed: a name, or a list of a name and parameters"))
            else:
                object.__setattr__(self, name, named[0] if len(named) == 1 else named)
        problems += self._check_matches()
        raise_problems("DistillationConfig", problems)

    def _check_matches(self) -> list[Problem]:
        given = self.intermediate_matches
        if given is None:
            given = ()
        if isinstance(given, Mapping) or not isinstance(given, Sequence):
            return [Problem("intermediate_matches", f"given {given!r}; allowed: a list of dicts")]
        problems: list[Problem] = []
        matches = []
        for index, value in enumerate(given):
            key = f"intermediate_matches.{index}"
            if not isinstance(value, (Mapping, IntermediateMatch)):
                problems.append(Problem(key, f"given {value!r}; allowed: a dict"))
                continue
            try:
                match = IntermediateMatch.of(value)
            except ConfigError as error:
                problems += [dataclasses.replace(found, key=f"{key}.{found.key}") for found in error.problems]
                continue
            matches.append(match)
            problems += match.problems(key)
        object.__setattr__(self, "intermediate_matches", tuple(matches))
        return problems

    def __repr__(self) -> str:
        return f"DistillationConfig:\n{self}"


@dataclasses.dataclass(frozen=True, eq=False)
class CustomMatch(ClosedConfig):
    """A loss between the outputs of `module_T` and `module_S`: modules, or their names in the models (`bert.pooler`).

    `loss` is a name in MATCH_LOSS_MAP or a function of (output_S, output_T, mask_S, mask_T), or of the first few of
    them; masks are the adaptors' `inputs_mask`. It returns a mean, which weighs all examples alike, or a LossTerm.
    `proj_func` maps the student's output; if it is a module it is trained, with the optimizer options in `proj_group`.
    Of a module that returns a tuple the first item is taken, of one that runs several times in a forward pass the last
    output.
    """

    module_T: nn.Module | str
    module_S: nn.Module | str
    weight: float
    loss: Callable[..., Any] | str
    proj_func: Callable[[Tensor], Tensor] | None = None
    proj_group: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for side in ("module_T", "module_S"):
            if not isinstance(getattr(self, side), (nn.Module, str)):
                raise ConfigError(f"custom match: {side} must be a module or its name, got {getattr(self, side)!r}")
        if not callable(self.loss) and not isinstance(self.loss, str):
            raise ConfigError(f"custom match: loss must be a name or a function, got {self.loss!r}")
        problems = _number("custom match: weight", self.weight, least=0.0)
        if problems:
            raise ConfigError(str(problems[0]))


def resolve_module(model: nn.Module, module: nn.Module | str, side: str) -> nn.Module:
    """The module of `model` that is meant; ConfigError if it is none of the model's."""
    if isinstance(module, str):
        try:
            return model.get_submodule(module)
        except AttributeError as error:
            raise ConfigError(f"custom match: {side} {module!r}: {error}") from error
    if not any(module is candidate for candidate in model.modules()):
        raise ConfigError(f"custom match: {side}, a {type(module).__name__}, is no part of its model")
    return module


def _layers(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _whole(key: str, value: Any, least: int) -> list[Problem]:
    if _is_whole(value) and value >= least:
        return []
    return [Problem(key, f"given {value!r}; allowed: a whole number, at least {least}")]


def _number(key: str, value: Any, *, least: float = 0.0, above: float | None = None) -> list[Problem]:
    """What is wrong with `value` as a finite number >= `least`, or > `above`."""
    bound = f"at least {least:g}" if above is None else f"more than {above:g}"
    if isinstance(value, (int, float, numbers.Real)) and type(value) is not bool and math.isfinite(value):
        number = float(value)
        if number >= least if above is None else number > above:
            return []
    return [Problem(key, f"given {value!r}; allowed: a number, {bound}")]


def _truth(key: str, value: Any) -> list[Problem]:
    return [] if isinstance(value, bool) else [Problem(key, f"given {value!r}; allowed: True or False")]
