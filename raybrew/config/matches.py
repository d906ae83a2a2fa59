"""`distill.matches`: losses between intermediate layers, one by one or by TextBrewer's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field

from raybrew.catalog.layer_rules import LAYER_RULES
from raybrew.catalog.losses import MATCH_LOSSES, names_of
from raybrew.catalog.match_names import MATCH_NAMES, match_set
from raybrew.catalog.projections import PROJECTIONS
from raybrew.catalog.signals import KINDS
from raybrew.config.base import MAX_WEIGHT, NOT_IDENTITY, WHEN_SET, Many, Section
from raybrew.config.outside import FunctionName, is_outside
from raybrew.config.problems import near_match
from raybrew.config.teacher import TeacherConfig
from raybrew.errors import Problem
from raybrew.signals import LOGITS, VECTOR_KINDS

__all__ = ["MatchConfig", "ProjectionName", "check_match", "matches_of_task"]

#: Names of the catalogue, as types: what a value is checked against, and what its error lists.
if TYPE_CHECKING:
    MatchLossName: TypeAlias = str
    LayerRuleName: TypeAlias = str
    RelationName: TypeAlias = str
    FeatureName: TypeAlias = str
    ProjectionName: TypeAlias = str
else:
    MatchLossName = Literal[names_of(MATCH_LOSSES)]
    LayerRuleName = Literal[tuple(LAYER_RULES)]
    RelationName = Literal[(*VECTOR_KINDS, "attention")]
    FeatureName = Literal[tuple(name for name in KINDS if name != LOGITS.kind)]
    ProjectionName = Literal[("auto", "none", *PROJECTIONS)]


class MatchConfig(Section):
    """One loss between intermediate layers, over all pairs of layers that `layers` names.

    TextBrewer's names, such as L3_hidden_mse, may stand for a whole match.

    Example:
        >>> raybrew.Match(loss="hidden_mse", layers="even", weight=0.5)
        Match(loss='hidden_mse', weight=0.5)
    """

    loss: MatchLossName | FunctionName
    """Which loss; `raybrew list losses` explains each."""
    layers: LayerRuleName | FunctionName | Many[Many[int]] = "even"
    """A rule (`raybrew list matches`) or [student layer, teacher layer] pairs, 0 being the embeddings."""
    weight: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)
    """Weight of each pair."""
    teacher: str | None = None
    """Which of several teachers, by name; `rte` or `rte/b` of task rte among several. Not set: each task's only one."""
    projection: ProjectionName = "auto"
    """Trained map from the student's width to the teacher's; `auto`: linear where the loss needs equal widths."""
    relations: Many[RelationName] = VECTOR_KINDS
    """Of `relation_kl`: queries, keys, values with themselves (MiniLMv2); `attention` relates queries to keys."""
    relation_heads: int | None = Field(default=None, ge=1, le=4096)
    """Of `relation_kl`: heads that both widths are cut into. Not set: as many as the teacher has attention heads."""
    feature: FeatureName | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Of a function of your own: what it compares. Not set: hidden."""
    per: Literal["row", "token", "pair"] | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Of a function of your own: what its count counts. Not set: pairs of tokens of attention, rows of pooled, else
    tokens."""
    student_module: str | None = Field(default=None, min_length=1, json_schema_extra=WHEN_SET)
    """Compare the output of this module of the student, by its name (`bert.pooler`), instead of layers."""
    teacher_module: str | None = Field(default=None, min_length=1, json_schema_extra=WHEN_SET)
    """The module of the teacher that it is compared with; the teacher must run live."""
    preset: str | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """TextBrewer's name, which gives `loss` and `layers`; the depth in it must be the student's."""

    @property
    def is_own(self) -> bool:
        """Whether the loss is a function of the user's, `package.module:function`."""
        return is_outside(self.loss)

    @property
    def compares(self) -> str:
        """What is compared, in the words of the table of losses."""
        if self.is_own:
            return self.feature or "hidden"
        return MATCH_LOSSES[self.loss].needs

    @property
    def first_layer(self) -> int | None:
        """Number of the first layer that has such a thing: 0 are the embeddings; None for what has no layers."""
        kind = KINDS.get(self.compares)
        return 1 if kind is None else kind.first_layer

    @property
    def attends(self) -> bool:
        """Whether what is compared belongs to attention."""
        return self.compares not in KINDS or KINDS[self.compares].attends

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """A name alone as a match, and a match with `preset` with all that the name says."""
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or not isinstance(value.get("preset"), str):
            return value
        name = value["preset"]
        found = match_set(name)
        if found is None:
            near = near_match(name, MATCH_NAMES)
            raise ValueError(f"a section of keys, or a name such as L3_hidden_mse (`raybrew list matches`){near}")
        said = {"loss": found.loss, "layers": "even"}
        for key, meant in said.items():
            if value.get(key, meant) != meant:
                raise ValueError(f"{key}: {meant}, or no {key}, beside preset: {name}")
        return value | said


def matches_of_task(matches: tuple[MatchConfig, ...], task: str) -> tuple[MatchConfig, ...]:
    """The matches that hold for `task`, their `teacher` without its name: `rte/b` becomes b, `rte` the only one."""
    found = []
    for match in matches:
        if match.teacher is None:
            found.append(match)
        elif match.teacher.split("/")[0] == task:
            found.append(match.model_copy(update={"teacher": match.teacher.partition("/")[2] or None}))
    return tuple(found)


def check_match(key: str, match: MatchConfig, teacher: TeacherConfig) -> list[Problem]:
    """Problems of one match, whose section is `key`."""
    return [*_layers(key, match), *_options(key, match), *_modules(key, match, teacher)]


def _layers(key: str, match: MatchConfig) -> list[Problem]:
    first, where = match.first_layer, f"{key}.layers"
    if first is None:
        given = f"given for {match.loss}, which compares one vector per row; remove layers"
        return [Problem(where, given, "unused")] if match.layers != "even" else []
    if not isinstance(match.layers, tuple):
        return []
    counted = "0 being the embeddings" if first == 0 else "counted from 1"
    problems = [
        Problem(where, f"given {list(pair)}; allowed: [student layer, teacher layer], {counted}")
        for pair in match.layers
        if len(pair) != 2 or min(pair, default=-1) < first
    ]
    return problems if match.layers else [Problem(where, "an empty list matches nothing", "empty")]


def _options(key: str, match: MatchConfig) -> list[Problem]:
    problems = []
    if match.projection not in ("auto", "none") and match.attends:
        problems.append(
            Problem(
                f"{key}.projection",
                f"given {match.projection!r} for {match.loss}; allowed: auto, none (it has no width to project)",
                "unused",
            )
        )
    if match.compares == "qkv":
        if not match.relations or len(set(match.relations)) != len(match.relations):
            problems.append(
                Problem(
                    f"{key}.relations",
                    f"given {list(match.relations)}; allowed: some of query, key, value, attention, each once",
                    "duplicate",
                )
            )
    else:
        problems += [
            Problem(f"{key}.{name}", f"given for {match.loss}; it is of relation_kl", "unused")
            for name in ("relations", "relation_heads")
            if getattr(match, name) != MatchConfig.model_fields[name].default
        ]
    if not match.is_own:
        problems += [
            Problem(
                f"{key}.{name}",
                f"given for {match.loss}; it is of functions of your own, package.module:function",
                "unused",
            )
            for name in ("feature", "per")
            if getattr(match, name) is not None
        ]
    elif match.per in ("token", "pair") and match.first_layer is None:
        problems.append(
            Problem(f"{key}.per", f"given {match.per!r} for pooled outputs, one vector per row; use row", "unused")
        )
    return problems


def _modules(key: str, match: MatchConfig, teacher: TeacherConfig) -> list[Problem]:
    given = {name: getattr(match, name) for name in ("student_module", "teacher_module")}
    if not any(given.values()):
        return []
    problems = [
        Problem(f"{key}.{name}", f"required: the match compares modules, and {other} is given", "required")
        for name, other in zip(given, reversed(given), strict=True)
        if given[name] is None
    ]
    if match.compares != "hidden" or match.layers != "even" or match.preset is not None:
        problems.append(
            Problem(
                f"{key}.student_module",
                "given for what is no loss of hidden states, or beside layers, feature or preset; allowed: hidden_mse, "
                "cos, gram, mmd, pkd or a function of your own, alone",
                "conflict",
            )
        )
    if teacher.members:
        problems.append(
            Problem(f"{key}.teacher_module", "given with teacher.members; it is for one teacher", "conflict")
        )
    elif teacher.source != "live" and match.weight > 0:
        problems.append(
            Problem(
                f"{key}.teacher_module",
                f"given with teacher.source {teacher.source!r}; no store holds outputs of modules, set "
                "teacher.source=live",
                "conflict",
            )
        )
    return problems
