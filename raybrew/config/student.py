"""`student`: a Hugging Face model, or a shape built after the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field

from raybrew.catalog.initialisations import INITIALISATIONS, initialisation
from raybrew.catalog.layer_rules import OLD_INIT_RULES, START_RULES
from raybrew.catalog.shapes import RECURRENT_SHAPES, SHAPES, NamedShape
from raybrew.config.base import MAX_COUNT, WHEN_SET, Many, Section
from raybrew.config.outside import FunctionName, is_outside, row_name
from raybrew.config.paths import exists
from raybrew.config.problems import near_match
from raybrew.config.teacher import TeacherConfig
from raybrew.errors import Problem

__all__ = ["WITHOUT_LAYERS", "ShapeConfig", "StudentConfig", "VocabularyConfig", "check_student", "check_vocabulary"]

#: Named shapes that are no transformers: neither layers to start from nor attention to compare.
WITHOUT_LAYERS = tuple(RECURRENT_SHAPES)
if TYPE_CHECKING:
    InitName: TypeAlias = str
    StartRuleName: TypeAlias = str
    ShapeName: TypeAlias = str
else:
    InitName = Literal[("auto", *INITIALISATIONS)]
    StartRuleName = Literal[(*START_RULES, *OLD_INIT_RULES)]
    ShapeName = Literal[(*SHAPES, *RECURRENT_SHAPES)] | row_name(NamedShape)


class ShapeConfig(Section):
    """Size of a transformer student; what is not given is the teacher's.

    Example:
        >>> raybrew.Shape(layers=3, hidden=384)
        Shape(layers=3, hidden=384)
    """

    layers: int = Field(ge=1, le=1000)
    """Number of transformer layers."""
    hidden: int | None = Field(default=None, ge=1, le=65536)
    """Width of the hidden states."""
    heads: int | None = Field(default=None, ge=1, le=4096)
    """Attention heads; must divide `hidden`. Default: the teacher's head width is kept where it divides."""
    feed_forward: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Width of the feed-forward layers. Default: the teacher's ratio to `hidden`."""


class VocabularyConfig(Section):
    """Word embeddings for the pieces of a corpus alone: those of the training rows, labelled and unlabelled."""

    min_count: int = Field(default=1, ge=1, le=MAX_COUNT)
    """Pieces that come up less often are left out. With 1 the rows are cut into the same pieces as before."""
    keep: Many[str] = ()
    """Further pieces to keep, as the tokenizer writes them. Special tokens and single characters are kept anyway."""
    texts: str | None = None
    """A text file (also .gz) with one text a line, whose pieces count as those of the rows do."""


class StudentConfig(Section):
    """Either `model` or `shape`. The name of a shape, a folder or a hub name may stand for the section.

    Example:
        >>> raybrew.StudentConfig("T3"), raybrew.StudentConfig("owner/model")
        (StudentConfig(shape='T3'), StudentConfig(model='owner/model'))
    """

    model: str | None = None
    """Folder or hub name of a Hugging Face model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow the model's own Python code to run. Only for code you have read."""
    shape: ShapeConfig | ShapeName | None = None
    """A shape by name (`raybrew list shapes`) or by its numbers; architecture and vocabulary are the teacher's."""
    teacher: str | None = None
    """Which of several teachers a shape is made after, by name; `rte` or `rte/b` of task rte. Default: the first."""
    init: InitName | FunctionName = "auto"
    """Weights of a shape: copied from `teacher` layers; `truncate`: also out of wider ones, by their first numbers,
    heads and neurons; or `random`. `auto`: copied if the shape is as wide as the teacher, else random. BiGRU takes the
    teacher's word embeddings unless it is `random`."""
    init_layers: StartRuleName | FunctionName | Many[int] = "even"
    """Which teacher layers a shape starts from: a rule, or layer numbers counted from 1."""
    vocabulary: VocabularyConfig | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Trim tokenizer and word embeddings to the training rows: {} or {min_count: 2}."""

    @property
    def starts_random(self) -> bool:
        """Whether a shape is to start without its teacher; `auto` decides by the teacher's width."""
        return initialisation(self.init).is_random

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """The name of a shape, else a folder or a hub name; what nearly is a shape's name is taken for a slip."""
        if isinstance(value, ShapeConfig):
            return {"shape": value, "model": None}
        if not isinstance(value, str) or "${" in value:  # which stands for either
            return super().long_form(value)
        shapes = (*SHAPES, *RECURRENT_SHAPES)
        if value in shapes or is_outside(value):
            return {"shape": value, "model": None}
        near = near_match(value, shapes)
        if near and "/" not in value and not exists(value, folder=True):
            raise ValueError(f"a shape ({', '.join(shapes)}), a folder that exists, owner/name or {{model: ...}}{near}")
        return {"model": value, "shape": None}


def check_student(student: StudentConfig, teacher: TeacherConfig) -> list[Problem]:
    problems = []
    if student.model is not None and student.shape is not None:
        problems.append(
            Problem("student", f"given both model ({student.model!r}) and shape; allowed: one of them", "conflict")
        )
    if student.shape is not None and not teacher.given:
        problems.append(
            Problem("student.shape", "needs teacher.model, whose architecture and vocabulary it takes", "required")
        )
    if student.model is not None:
        for key, default in (("init", "auto"), ("init_layers", "even")):
            if getattr(student, key) != default:
                problems.append(
                    Problem(f"student.{key}", "applies to student.shape only, but student.model is given", "unused")
                )
    if isinstance(student.init_layers, tuple):
        layers = student.shape.layers if isinstance(student.shape, ShapeConfig) else None
        if layers is not None and len(student.init_layers) != layers:
            problems.append(
                Problem("student.init_layers", f"given {len(student.init_layers)} layers for a student of {layers}")
            )
        if any(layer < 1 for layer in student.init_layers):
            problems.append(
                Problem("student.init_layers", f"given {list(student.init_layers)}; layers are counted from 1")
            )
    shape = student.shape
    if isinstance(shape, ShapeConfig) and shape.hidden and shape.heads and shape.hidden % shape.heads:
        problems.append(
            Problem("student.shape.heads", f"given {shape.heads}; allowed: a divisor of hidden ({shape.hidden})")
        )
    return problems


def check_vocabulary(student: StudentConfig) -> list[Problem]:
    if student.vocabulary is None or student.model is not None or student.shape is not None:
        return []
    return [Problem("student.vocabulary", "given without a student; name student.shape or student.model", "required")]
