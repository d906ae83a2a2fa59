"""Starting a student from its teacher: tensors copied by name, layers by a chosen mapping, wide ones cut to size.

Cut tensors are such that what is left belongs together. Hidden states keep their first numbers, feed-forward layers
their first neurons, attention its first heads. A narrower head keeps its first numbers as well; with rotary positions,
whose pairs of numbers turn at a frequency that depends on the width, it keeps the pairs that turn as the student's do.
All tensors are cut at the same places, so each number of the student means what the teacher's means.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from raybrew.errors import ConfigError, ModelError
from raybrew.models.loading import OUTPUT_LAYER, model_labels
from raybrew.models.shapes import FAMILIES, TeacherDims, dims_of, sizes_text

__all__ = ["InitReport", "Truncation", "init_by_truncation", "init_from_teacher", "share_embeddings"]

#: The outermost layer number in a parameter's name: `bert.encoder.layer.3.output`, `model.layers.3.mlp`.
_LAYER = re.compile(r"^(?P<before>(?:.*?\.)??(?:layers?|h|blocks?)\.)(?P<index>\d+)(?P<after>\..+)$")
_SHOWN_NAMES = 4


@dataclasses.dataclass(frozen=True)
class InitReport:
    """What a student took over from its teacher; counts are parameters, shared ones once."""

    layers: tuple[int, ...]
    """Teacher layer, counted from 1, of each student layer."""
    copied: int
    random: int
    random_names: tuple[str, ...]
    """Tensors that kept their random start."""
    cut: int = 0
    """Of the copied ones, those that are parts of larger tensors."""

    @property
    def share(self) -> float:
        """Copied parameters among all, 0 to 1."""
        return self.copied / (self.copied + self.random)

    def __str__(self) -> str:
        text = (
            f"started from teacher layers {', '.join(map(str, self.layers))}: "
            f"{100 * self.share:.1f} % of {self.copied + self.random:,} parameters copied"
        )
        if self.cut:
            text += f" ({100 * self.cut / (self.copied + self.random):.1f} % out of wider ones)"
        if not self.random_names:
            return text
        names = ", ".join(self.random_names[:_SHOWN_NAMES])
        more = len(self.random_names) - _SHOWN_NAMES
        return f"{text}, random: {names}{f' and {more} more' if more > 0 else ''}"


def init_from_teacher(
    student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int], truncate: bool = False
) -> InitReport:
    """Copies into `student`, in place, every tensor of the teacher that has its name and shape.

    With `truncate` larger tensors of its name as well, cut to size (`raybrew.models.initialise`); ConfigError if the
    student is larger than the teacher.
    Student layer i is looked up as teacher layer `layers[i]`, counted from 1. Tied tensors stay tied. The output layer
    keeps its random start where the label names of both models are known and differ. ModelError if `layers` does not
    fit the models, or if no matrix of the embeddings or of a layer could be copied; the student is unchanged then.
    """
    source = teacher.state_dict()
    target: dict[str, Tensor] = student.state_dict(keep_vars=True)
    _check_layers(layers, _layer_count(target), _layer_count(source))
    skip_output = _labels_differ(student.config, teacher.config)
    cut_to_size = Truncation(student.config, teacher.config) if truncate else None
    pairs: list[tuple[Tensor, Tensor]] = []
    random = cut = 0
    random_names: list[str] = []
    starts_somewhere = False
    seen: set[int] = set()
    for name, tensor in target.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        is_output = skip_output and OUTPUT_LAYER.match(name) is not None
        found = None if is_output else source.get(_name_in_teacher(name, layers))
        if cut_to_size is not None and not is_output and (found is None or found.shape != tensor.shape):
            found = cut_to_size(name, found, tensor.shape)
            cut += tensor.numel() if found is not None else 0
        if found is None or found.shape != tensor.shape:
            random += tensor.numel()
            random_names.append(name)
            continue
        pairs.append((tensor, found))
        # The head of any two models may fit, and vectors of other widths; neither alone is a start from the teacher.
        starts_somewhere |= tensor.dim() > 1 and (_LAYER.match(name) is not None or "embed" in name)
    if not starts_somewhere:
        raise ModelError(
            f"nothing to start from: no embedding or layer of the teacher ({sizes_text(teacher.config)}) has the name "
            f"and size of one of the student's ({sizes_text(student.config)}); set student.init=random or truncate, or "
            "give the student the teacher's hidden width"
        )
    with torch.no_grad():
        for tensor, found in pairs:
            tensor.copy_(found)
    copied = sum(tensor.numel() for tensor, _ in pairs)
    return InitReport(tuple(layers), copied, random, tuple(random_names), cut)


def init_by_truncation(student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int]) -> InitReport:
    """`init_from_teacher` that cuts larger tensors to size."""
    return init_from_teacher(student, teacher, layers, truncate=True)


def share_embeddings(student: PreTrainedModel, teacher: PreTrainedModel) -> str:
    """Copies the teacher's word embeddings into a student of the same vocabulary, in place; says what came of it.

    ModelError if the sizes differ.
    """
    ours, theirs = (_embeddings(model) for model in (student, teacher))
    if ours.shape != theirs.shape:
        raise ModelError(
            f"the student's word embeddings are {tuple(ours.shape)}, the teacher's {tuple(theirs.shape)}; set "
            "student.init=random"
        )
    with torch.no_grad():
        ours.copy_(theirs)
    total = sum(parameter.numel() for parameter in student.parameters())
    return f"started from the teacher's word embeddings: {100 * ours.numel() / total:.1f} % of {total:,} parameters"


def _embeddings(model: PreTrainedModel) -> Tensor:
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight


def _name_in_teacher(name: str, layers: Sequence[int]) -> str:
    found = _LAYER.match(name)
    if found is None:
        return name
    return f"{found['before']}{layers[int(found['index'])] - 1}{found['after']}"


def _layer_count(tensors: dict[str, Tensor]) -> int:
    indices = [int(found["index"]) for found in map(_LAYER.match, tensors) if found is not None]
    return max(indices, default=-1) + 1


def _check_layers(layers: Sequence[int], student_layers: int, teacher_layers: int) -> None:
    if len(layers) != student_layers:
        raise ModelError(
            f"given {len(layers)} teacher layers ({list(layers)}) for a student of {student_layers} layers"
        )
    outside = [layer for layer in layers if not 1 <= layer <= teacher_layers]
    if outside:
        raise ModelError(f"given teacher layers {outside}; the teacher has layers 1 to {teacher_layers}")


def _labels_differ(student: PretrainedConfig, teacher: PretrainedConfig) -> bool:
    ours, theirs = model_labels(student), model_labels(teacher)
    return ours is not None and theirs is not None and ours != theirs


#: Projections whose rows are heads side by side, by the names that the families give them.
_INTO_HEADS = re.compile(
    r"\.(?:self\.(?:query|key|value)|[qkv]_lin|(?:pos_)?(?:query|key|value)_proj|attn\.[qkv])\.(?:weight|bias)$"
)
#: ModernBERT's queries, keys and values in one matrix, and the two halves of its gated feed-forward.
_FUSED_HEADS = re.compile(r"\.attn\.Wqkv\.(?:weight|bias)$")
_FUSED_GATE = re.compile(r"\.mlp\.Wi\.(?:weight|bias)$")
#: Projections whose columns are heads side by side.
_OUT_OF_HEADS = re.compile(r"\.(?:attention\.output\.dense|attention\.out_lin|attn\.o|attn\.Wo)\.weight$")
#: Families whose queries and keys turn by position.
_ROTARY = ("modernbert",)


class Truncation:
    """How tensors of the teacher are cut for a student of its family; ConfigError if the student is larger anywhere."""

    def __init__(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        family = teacher.model_type
        ours, theirs = dims_of(student), dims_of(teacher)
        larger = [
            f"{name} {mine} of {other}"
            for name, mine, other in (
                ("hidden", ours.hidden, theirs.hidden),
                ("heads", ours.heads, theirs.heads),
                ("head width", ours.hidden // ours.heads, theirs.hidden // theirs.heads),
                ("feed_forward", ours.feed_forward, theirs.feed_forward),
            )
            if mine > other
        ]
        if family not in FAMILIES:
            why = f"for a teacher of family {family!r}; it is known for {', '.join(FAMILIES)}"
        elif larger:
            why = (
                f"for a student that is larger than its teacher ({', '.join(larger)}); student.shape.heads="
                f"{max(1, ours.hidden * theirs.heads // theirs.hidden)} keeps whole heads, student.init=random starts "
                "anew"
            )
        elif _has_projection(teacher) and not _has_projection(student):
            why = (
                f"with student.shape.hidden={ours.hidden}, the width of the embeddings, which the teacher projects to "
                "its own; the student would have no such projection: take another width"
            )
        else:
            self._feed_forward = ours.feed_forward
            self._heads = _head_places(ours, theirs, family in _ROTARY)
            self._wide = theirs
            self._adds_projection = _has_projection(student) and not _has_projection(teacher)
            return
        message = f"given 'truncate' {why} (teacher: {sizes_text(teacher)})"
        raise ConfigError.of("student.init", message, "unfit")

    def __call__(self, name: str, tensor: Tensor | None, shape: Sequence[int]) -> Tensor | None:
        """What a tensor of `shape` starts from: the part of the teacher's `tensor` of this name; None if there is none.

        The projection of embeddings that an ELECTRA student has and its teacher lacks starts as the choice of the first
        numbers.
        """
        if tensor is None:
            if not self._adds_projection or ".embeddings_project." not in name:
                return None
            return torch.eye(*shape) if len(shape) > 1 else torch.zeros(*shape)
        if _INTO_HEADS.search(name):
            tensor = tensor[self._heads]
        elif _FUSED_HEADS.search(name):
            tensor = torch.cat([part[self._heads] for part in torch.split(tensor, self._wide.hidden)])
        elif _FUSED_GATE.search(name):
            tensor = torch.cat([part[: self._feed_forward] for part in torch.split(tensor, self._wide.feed_forward)])
        elif _OUT_OF_HEADS.search(name):
            tensor = tensor[:, self._heads]
        if tensor.dim() != len(shape) or any(size > given for size, given in zip(shape, tensor.shape, strict=True)):
            return None
        return tensor[tuple(slice(size) for size in shape)]


def _has_projection(config: PretrainedConfig) -> bool:
    """Whether embeddings have a width of their own and are projected to that of the hidden states (ELECTRA)."""
    width: int | None = getattr(config, "embedding_size", None)
    return width is not None and width != dims_of(config).hidden


def _head_places(student: TeacherDims, teacher: TeacherDims, rotary: bool) -> Tensor:
    """Numbers of the teacher's heads, side by side, that the student's have, (student.hidden,)."""
    ours, theirs = student.hidden // student.heads, teacher.hidden // teacher.heads
    inside = torch.arange(ours)
    if rotary:
        # Number i turns with number i + width / 2, at a frequency that depends on i / width.
        pairs = torch.arange(ours // 2) * theirs // ours
        inside = torch.cat([pairs, pairs + theirs // 2])
    return (torch.arange(student.heads)[:, None] * theirs + inside).flatten()
