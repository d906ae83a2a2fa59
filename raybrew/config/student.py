"""`student`: a Hugging Face model, or a shape built after the teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raybrew.config.base import Many, Section

__all__ = ["LAYER_RULES", "WITHOUT_LAYERS", "ShapeConfig", "StudentConfig"]

#: Rules that name the teacher layers a student starts from; a list of layer numbers (1 = first) does as well.
LAYER_RULES = {
    "even": "layer i of k takes teacher layer round(i * depth / k): spread over the whole depth (DistilBERT)",
    "first": "layers 1..k of the teacher",
    "last": "the last k layers of the teacher (PKD-last)",
    "skip": "every (depth // k)-th layer from the first on: 1, 3, 5, ... for half of the layers (PKD-skip)",
}

#: Named shapes that are no transformers: neither layers to start from nor attention to compare.
WITHOUT_LAYERS = ("BiGRU",)


class ShapeConfig(Section):
    """Size of a transformer student; what is not given is the teacher's."""

    layers: int = Field(ge=1)
    """Number of transformer layers."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the hidden states."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; must divide `hidden`. Default: the teacher's head width is kept where it divides."""
    feed_forward: int | None = Field(default=None, ge=1)
    """Width of the feed-forward layers. Default: the teacher's ratio to `hidden`."""


class StudentConfig(Section):
    """Either `model` or `shape`."""

    model: str | None = None
    """Folder or hub name of a Hugging Face model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow the model's own Python code to run. Only for code you have read."""
    shape: ShapeConfig | str | None = None
    """A shape by name (`raybrew list shapes`) or by its numbers; architecture and vocabulary are the teacher's."""
    teacher: str | None = None
    """Which of several teachers a shape is made after, by name; `rte` or `rte/b` of task rte. Default: the first."""
    init: Literal["auto", "teacher", "truncate", "random"] = "auto"
    """Weights of a shape: copied from `teacher` layers; `truncate`: also out of wider ones, by their first numbers,
    heads and neurons; or `random`. `auto`: copied if the shape is as wide as the teacher, else random. BiGRU takes the
    teacher's word embeddings unless it is `random`."""
    init_layers: Literal["even", "first", "last", "skip"] | Many[int] = "even"
    """Which teacher layers a shape starts from: a rule, or layer numbers counted from 1."""
