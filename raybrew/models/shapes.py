"""Student shapes by name or numbers, which teacher layers a student starts from, and where configs keep their sizes.

Imports no torch: `raybrew list shapes` and the planner read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from raybrew.catalog.layer_rules import LAYER_RULES
from raybrew.catalog.shapes import SHAPES
from raybrew.config.problems import near_match
from raybrew.config.student import ShapeConfig
from raybrew.errors import ConfigError, ModelError

__all__ = [
    "FAMILIES",
    "SizeNames",
    "TeacherDims",
    "dims_of",
    "pick_layers",
    "resolve_shape",
    "size_names",
    "sizes_text",
]


class TeacherDims(NamedTuple):
    """Sizes of a transformer, against which a shape is resolved."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int


class SizeNames(NamedTuple):
    """Attributes under which a family's Hugging Face config keeps its sizes."""

    layers: str
    hidden: str
    heads: str
    feed_forward: str


_STANDARD = SizeNames("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")

#: `model_type` -> names of its sizes, for the families that students are built and tested with.
FAMILIES: Mapping[str, SizeNames] = MappingProxyType(
    {
        "bert": _STANDARD,
        "camembert": _STANDARD,
        "deberta-v2": _STANDARD,
        "distilbert": SizeNames("n_layers", "dim", "n_heads", "hidden_dim"),
        "electra": _STANDARD,
        "modernbert": _STANDARD,
        "mpnet": _STANDARD,
        "roberta": _STANDARD,
        "xlm-roberta": _STANDARD,
    }
)


def size_names(model_type: str) -> SizeNames:
    """Names of the sizes of a family; the usual ones for a family that `FAMILIES` lacks."""
    return FAMILIES.get(model_type, _STANDARD)


def dims_of(config: Any) -> TeacherDims:
    """Sizes in a Hugging Face config; ModelError if they are not where other families have them."""
    names = size_names(config.model_type)
    found = {name: getattr(config, name, None) for name in names}
    values = [value for value in found.values() if isinstance(value, int)]
    if len(values) < len(found):
        missing = [name for name, value in found.items() if not isinstance(value, int)]
        raise ModelError(
            f"the config of model type {config.model_type!r} has no number under {', '.join(missing)}, so its shape is "
            f"unknown; families with a known shape: {', '.join(FAMILIES)}"
        )
    return TeacherDims(*values)


def sizes_text(config: Any) -> str:
    """`bert, 4 layers x 312, 12 heads, feed-forward 1200`; only the family where the sizes are unknown."""
    try:
        layers, hidden, heads, feed_forward = dims_of(config)
    except ModelError:
        return str(config.model_type)
    if not heads:
        return f"{config.model_type}, {layers} bidirectional GRU x {hidden}"
    plural = "s" if layers > 1 else ""
    return f"{config.model_type}, {layers} layer{plural} x {hidden}, {heads} heads, feed-forward {feed_forward}"


def resolve_shape(shape: ShapeConfig | str, teacher: TeacherDims) -> ShapeConfig:
    """`shape` with all four numbers.

    What is not given follows the teacher: its width; its head width where that divides `hidden`, else the most heads
    that do, up to the teacher's number; its ratio of feed-forward to hidden width. ConfigError names the key.
    """
    if isinstance(shape, str):
        row = SHAPES[shape]
        return ShapeConfig(layers=row.layers, hidden=row.hidden, heads=row.heads, feed_forward=row.feed_forward)
    hidden = shape.hidden or teacher.hidden
    heads = shape.heads or _heads(hidden, teacher)
    if hidden % heads:
        divisors = [str(number) for number in range(1, hidden + 1) if hidden % number == 0]
        raise ConfigError.of(
            "student.shape.heads",
            f"given {heads}; allowed: a divisor of hidden ({hidden}): {', '.join(divisors)}",
            "unfit",
        )
    feed_forward = shape.feed_forward or max(1, round(hidden * teacher.feed_forward / teacher.hidden))
    return ShapeConfig(layers=shape.layers, hidden=hidden, heads=heads, feed_forward=feed_forward)


def pick_layers(rule: str | Sequence[int], student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Teacher layers, counted from 1, that the student's layers start from, in order.

    `rule` is a name of `raybrew.catalog.layer_rules.LAYER_RULES` or the layers themselves, which may repeat.
    ConfigError names student.init_layers.
    """
    key = "student.init_layers"
    if not isinstance(rule, str):
        layers = tuple(rule)
        if len(layers) != student_layers:
            raise ConfigError.of(
                key,
                f"given {len(layers)} layers ({list(layers)}) for a student of {student_layers}; one each is needed",
                "unfit",
            )
        outside = [layer for layer in layers if not 1 <= layer <= teacher_layers]
        if outside:
            raise ConfigError.of(key, f"given {outside}; the teacher has layers 1 to {teacher_layers}", "unfit")
        return layers
    if rule not in LAYER_RULES:
        raise ConfigError.of(
            key,
            f"given {rule!r}; allowed: {', '.join(LAYER_RULES)}, or layer numbers{near_match(rule, LAYER_RULES)}",
            "unfit",
        )
    if student_layers > teacher_layers:
        raise ConfigError.of(
            key,
            f"given {rule!r} for a student of {student_layers} layers, but the teacher has {teacher_layers}; list the "
            "layers (they may repeat), or set student.init=random",
            "unfit",
        )
    places = range(1, student_layers + 1)
    if rule == "first":
        return tuple(places)
    if rule == "last":
        return tuple(teacher_layers - student_layers + place for place in places)
    if rule == "skip":
        step = teacher_layers // student_layers
        return tuple(1 + (place - 1) * step for place in places)
    # Rounded as the match rule `even` rounds, so that a layer starts from the one it is compared with.
    return tuple(round(place * teacher_layers / student_layers) for place in places)


def _heads(hidden: int, teacher: TeacherDims) -> int:
    width = teacher.hidden // teacher.heads
    if hidden % width == 0:
        return hidden // width
    return max(heads for heads in range(1, min(teacher.heads, hidden) + 1) if hidden % heads == 0)
