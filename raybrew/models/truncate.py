"""Tensors of a wide model cut to the size of a narrow one, so that what is left belongs together.

Hidden states keep their first numbers, feed-forward layers their first neurons, attention its first heads. A narrower
head keeps its first numbers as well; with rotary positions, whose pairs of numbers turn at a frequency that depends on
the width, it keeps the pairs that turn as the student's do. All tensors are cut at the same places, so each number of
the student means what the teacher's means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig

from raybrew.errors import ConfigError
from raybrew.models.shapes import FAMILIES, TeacherDims, dims_of, sizes_text

__all__ = ["Truncation"]

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
