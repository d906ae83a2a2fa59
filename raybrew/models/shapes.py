"""Student shapes by name or numbers, which teacher layers a student starts from, and where configs keep their sizes.

Imports no torch: `raybrew list shapes` and the planner read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from raybrew.catalog.layer_rules import LAYER_RULES, OLD_INIT_RULES, START_RULES, Pairs
from raybrew.catalog.shapes import SHAPES, NamedShape
from raybrew.config.outside import is_outside, load_outside, row_of
from raybrew.config.problems import near_match
from raybrew.config.student import ShapeConfig
from raybrew.errors import ConfigError, ModelError

__all__ = [
    "FAMILIES",
    "SizeNames",
    "TeacherDims",
    "dims_of",
    "layer_pairs",
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
        row = row_of(SHAPES, shape, "student.shape", NamedShape)
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


def layer_pairs(rule: str, student_layers: int, teacher_layers: int, key: str) -> Pairs:
    """(student layer, teacher layer) pairs of a rule of the catalogue, or of a function of the user's; 0 = embeddings.

    ConfigError names `key` if the function cannot be imported or returns no pairs of whole numbers.
    """
    if not is_outside(rule):
        return LAYER_RULES[rule].pairs(student_layers, teacher_layers)
    found = load_outside(rule, key)(student_layers, teacher_layers)
    try:
        pairs = [(student, teacher) for student, teacher in found]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or not all(type(layer) is int for pair in pairs for layer in pair):
        raise ConfigError.of(
            key, f"given {rule!r}, which returned {found!r}; wanted: a list of (student layer, teacher layer)", "unfit"
        )
    return pairs


def pick_layers(rule: str | Sequence[int], student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Teacher layers, counted from 1, that the student's layers start from, in order.

    `rule` is a rule by name, `package.module:function`, or the layers themselves, which may repeat. ConfigError names
    student.init_layers.
    """
    key = "student.init_layers"
    if isinstance(rule, str):
        layers = _layers_by_rule(OLD_INIT_RULES.get(rule, rule), student_layers, teacher_layers, key)
    else:
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


def _layers_by_rule(rule: str, student_layers: int, teacher_layers: int, key: str) -> tuple[int, ...]:
    if not is_outside(rule):
        if rule not in START_RULES:
            allowed = f"allowed: {', '.join(START_RULES)}, or layer numbers{near_match(rule, START_RULES)}"
            raise ConfigError.of(key, f"given {rule!r}; {allowed}", "unfit")
        if student_layers > teacher_layers:
            raise ConfigError.of(
                key,
                f"given {rule!r} for a student of {student_layers} layers, but the teacher has {teacher_layers}; list "
                "the layers (they may repeat), or set student.init=random",
                "unfit",
            )
    pairs = [pair for pair in layer_pairs(rule, student_layers, teacher_layers, key) if pair[0] != 0]
    if [student for student, _ in pairs] != list(range(1, student_layers + 1)):
        raise ConfigError.of(
            key,
            f"given {rule!r}, which pairs {pairs}; each of the student's {student_layers} layers needs one",
            "unfit",
        )
    return tuple(teacher for _, teacher in pairs)


def _heads(hidden: int, teacher: TeacherDims) -> int:
    width = teacher.hidden // teacher.heads
    if hidden % width == 0:
        return hidden // width
    return max(heads for heads in range(1, min(teacher.heads, hidden) + 1) if hidden % heads == 0)
