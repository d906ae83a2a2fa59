"""TextBrewer's modules under raybrew, such as `raybrew.presets`: one table, and each name loads when it is used.

What scripts use is here. TextBrewer's inner workings (`post_adaptor`, `get_outputs_from_batch`, ...) have no
counterpart.
"""

from __future__ import annotations

import functools
import importlib
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

__all__ = ["MODULES", "add_modules"]


def _names(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names}


_MAPS = "raybrew.textbrewer.presets"
_LOSSES = {
    "kd_mse_loss": f"{_MAPS}:KD_LOSS_MAP:mse",
    "kd_ce_loss": f"{_MAPS}:KD_LOSS_MAP:ce",
    "att_mse_loss": f"{_MAPS}:MATCH_LOSS_MAP:attention_mse",
    "att_mse_sum_loss": f"{_MAPS}:MATCH_LOSS_MAP:attention_mse_sum",
    "att_ce_loss": f"{_MAPS}:MATCH_LOSS_MAP:attention_ce",
    "att_ce_mean_loss": f"{_MAPS}:MATCH_LOSS_MAP:attention_ce_mean",
    "hid_mse_loss": f"{_MAPS}:MATCH_LOSS_MAP:hidden_mse",
    "cos_loss": f"{_MAPS}:MATCH_LOSS_MAP:cos",
    "pkd_loss": f"{_MAPS}:MATCH_LOSS_MAP:pkd",
    "fsp_loss": f"{_MAPS}:MATCH_LOSS_MAP:fsp",
    "mmd_loss": f"{_MAPS}:MATCH_LOSS_MAP:mmd",
}
_SCHEDULERS = {
    "linear_growth_weight_scheduler": "raybrew.distillers.schedules:linear_growth",
    "linear_decay_weight_scheduler": "raybrew.distillers.schedules:linear_decay",
    "constant_temperature_scheduler": "raybrew.losses.temperatures:constant",
    "flsw_temperature_scheduler_builder": f"{_MAPS}:TEMPERATURE_SCHEDULER:flsw",
    "cwsm_temperature_scheduler_builder": f"{_MAPS}:TEMPERATURE_SCHEDULER:cwsm",
}
_PROJECTIONS = {
    "linear_projection": "raybrew.distillers.projections:linear",
    "projection_with_activation": f"{__name__}:projection_with_activation",
}
_PRESETS = {
    **(_LOSSES | _SCHEDULERS | _PROJECTIONS),
    **_names(
        _MAPS,
        *("ADAPTOR_KEYS", "FEATURES", "KD_LOSS_MAP", "MATCH_LOSS_MAP", "PROJ_MAP", "TEMPERATURE_SCHEDULER"),
        *("WEIGHT_SCHEDULER", "register_new"),
    ),
}
_DISTILLERS = _names(
    "raybrew.textbrewer.distillers",
    *("BasicDistiller", "BasicTrainer", "GeneralDistiller", "MultiTaskDistiller", "MultiTeacherDistiller"),
)
#: Its modules of configurations and distillers import each other whole.
_ALL = {
    **(_PRESETS | _DISTILLERS),
    **_names("raybrew.textbrewer.configs", "DistillationConfig", "IntermediateMatch", "TrainingConfig"),
    "CustomMatch": "raybrew.textbrewer.configs:CustomMatch",
    "move_to_device": "raybrew.training.streams:move",
}
_WHOLE = (
    "configurations",
    *(f"distiller_{kind}" for kind in ("basic", "general", "multitask", "multiteacher", "train", "utils")),
)

#: Module below raybrew -> names in it -> `module:attribute`, or `module:mapping:key`.
MODULES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(_WHOLE, _ALL),
        "data_utils": _names(__name__, "deleting", "long_disorder", "masking", "n_gram_sampling", "short_disorder"),
        "distillers": _DISTILLERS,
        "losses": _LOSSES,
        "presets": _PRESETS,
        "projections": _PROJECTIONS,
        "schedulers": _SCHEDULERS,
        "utils": _names("raybrew.models.inspection", "display_parameters"),
    }
)

#: Those that are raybrew's own.
_PACKAGES = ("distillers", "losses")


def add_modules(package: str) -> dict[str, ModuleType]:
    """Makes the modules of the table importable below `package`, and returns them by name. Loads nothing else.

    Names of a package that is there already (`losses`, `distillers`) are added to its own.
    """
    modules = {}
    for name, targets in MODULES.items():
        path = f"{package}.{name}"
        if name in _PACKAGES:
            module = importlib.import_module(path)
        else:
            module = sys.modules[path] = ModuleType(path, f"Names of `textbrewer.{name}`; see {__name__}.")
            module.__spec__ = ModuleSpec(path, None)
        own = vars(module)
        load = functools.partial(_load, path, targets, own.get("__getattr__"))
        own |= {"__all__": [*own.get("__all__", ()), *targets], "__getattr__": load}
        modules[name] = module
    return modules


def _load(module: str, targets: Mapping[str, str], own: Callable[[str], Any] | None, name: str) -> Any:
    if name not in targets and own is not None:
        return own(name)
    if name not in targets:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    source, attribute, *key = targets[name].split(":")
    value = getattr(importlib.import_module(source), attribute)
    return value[key[0]] if key else value


def projection_with_activation(activation: Any) -> Any:
    """A builder (student_dim, teacher_dim) of an affine map and an activation: a class of torch.nn, or its name."""
    from torch import nn

    from raybrew.distillers.projections import linear

    kind = getattr(nn, activation) if isinstance(activation, str) else activation
    return lambda student_dim, teacher_dim: nn.Sequential(linear(student_dim, teacher_dim), kind())


class _GlobalNumpy(random.Random):
    """Draws from numpy's global generator, which scripts seed."""

    def random(self) -> float:
        import numpy as np

        return float(np.random.random_sample())  # noqa: NPY002

    def randint(self, a: int, b: int) -> int:
        import numpy as np

        return int(np.random.randint(a, b + 1))  # noqa: NPY002


def masking(tokens: Sequence[Any], p: float = 0.1, mask: Any = "[MASK]") -> list[Any]:
    """`raybrew.data.augmentation.masking` by numpy's global generator, and so are all below."""
    from raybrew.data import augmentation

    return augmentation.masking(tokens, p, mask, rng=_GlobalNumpy())


def deleting(tokens: Sequence[Any], p: float = 0.1) -> list[Any]:
    """Each token left out with probability `p`."""
    import numpy as np

    kept = np.random.binomial(1, 1 - p, len(tokens))  # noqa: NPY002
    return [token for token, keep in zip(tokens, kept, strict=True) if keep]


def n_gram_sampling(
    tokens: Sequence[Any],
    p_ng: Sequence[float] = (0.2, 0.2, 0.2, 0.2, 0.2),
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
) -> list[Any]:
    """One span of consecutive tokens."""
    from raybrew.data import augmentation

    return augmentation.n_gram_sampling(tokens, p_ng, l_ng, rng=_GlobalNumpy())


def short_disorder(tokens: Sequence[Any], p: Sequence[float] = (0.9, 0.1, 0, 0, 0)) -> list[Any]:
    """Neighbours exchanged."""
    from raybrew.data import augmentation

    return augmentation.short_disorder(tokens, p, rng=_GlobalNumpy())


def long_disorder(tokens: Sequence[Any], p: float = 0.1, length: float = 20) -> list[Any]:
    """Halves of spans exchanged."""
    from raybrew.data import augmentation

    return augmentation.long_disorder(tokens, p, length, rng=_GlobalNumpy())
