"""Problems of an experiment file: each with its dotted key, what was given, what is allowed and a near match."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from raybrew.errors import ConfigError, Problem, ProblemCode
from raybrew.secrets import scrub

__all__ = ["Problem", "UnusableError", "near_match", "problems_of", "raise_problems", "shown"]


#: Messages are for people: what is longer is cut.
_MAX_LINE = 1000
_MAX_LINES = 100
_MAX_SHOWN = 60


class UnusableError(ValueError):
    """A value of the right form that cannot be used; the message is the whole reason, without key and value."""


def near_match(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` if something allowed resembles what was given, whatever its case, else nothing."""
    folded = {name.casefold(): name for name in allowed}
    found = difflib.get_close_matches(given[:_MAX_SHOWN].casefold(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[found[0]]!r}?" if found else ""


def raise_problems(source: str, problems: Sequence[Problem]) -> None:
    """ConfigError that lists the problems, one a line and without secrets, if there are any."""
    if not problems:
        return
    listed = tuple(_for_people(problem) for problem in problems[:_MAX_LINES])
    lines = [str(problem) for problem in listed]
    if len(problems) > _MAX_LINES:
        lines.append(f"and {len(problems) - _MAX_LINES} further problems")
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    raise ConfigError(f"{_cut(scrub(source))}: {count}\n" + "\n".join(f"  {line}" for line in lines), listed)


def shown(value: Any) -> str:
    """`value` as Python writes it, in a few words and without secrets."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return "a whole number of many digits"  # which Python refuses to write
    # Before it is cut: a part of a secret is not known as one.
    text = repr(scrub(value))
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _for_people(problem: Problem) -> Problem:
    """`problem` without secrets, on a line of bounded length."""
    key = scrub(problem.key)
    return dataclasses.replace(problem, key=key, message=_cut(scrub(problem.message), _MAX_LINE - len(key) - 2))


def _cut(line: str, limit: int = _MAX_LINE) -> str:
    return line if len(line) <= limit else f"{line[: max(0, limit - 3)]}..."


def problems_of(error: ValidationError, prefix: str, model: type[BaseModel]) -> list[Problem]:
    """pydantic's findings in our words; alternatives of one union become one problem."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for finding in error.errors(include_url=False):
        path, _ = _walk(finding["loc"], model)
        if finding["type"] == "union_tag_invalid":
            path.append("kind")
        grouped.setdefault(".".join([prefix, *path] if prefix else path), []).append(finding)
    # Where a union member goes deeper into what was given, that finding says more than its siblings at the top.
    keys = [key for key in grouped if not any(other.startswith(key + ".") for other in grouped)]
    return [Problem(key, _describe(key, grouped[key], model), _code(grouped[key])) for key in keys]


def _code(findings: list[Mapping[str, Any]]) -> ProblemCode:
    kinds: dict[str, ProblemCode] = {"extra_forbidden": "unknown", "missing": "required"}
    kinds |= {"literal_error": "unknown", "union_tag_invalid": "unknown"}
    return kinds.get(findings[0]["type"], "value")


def _describe(key: str, findings: list[Mapping[str, Any]], model: type[BaseModel]) -> str:
    first = findings[0]
    kind, given = first["type"], first["input"]
    if kind == "extra_forbidden":
        section = _as_model(_walk(first["loc"][:-1], model)[1])
        fields = list(section.model_fields) if section is not None else []
        near = near_match(key.rsplit(".", 1)[-1], fields)
        return f"unknown key (given {shown(given)}); allowed: {', '.join(fields)}{near}"
    if kind == "missing":
        return "required, but not given"
    if kind == "union_tag_invalid":
        tags = [tag.strip().strip("'") for tag in first["ctx"]["expected_tags"].split(",")]
        wrong = first["ctx"]["tag"]
        return f"given {wrong!r}; allowed: {', '.join(tags)}{near_match(wrong, tags)}"
    errors = [finding.get("ctx", {}).get("error") for finding in findings]
    unusable = next((error for error in errors if isinstance(error, UnusableError)), None)
    if unusable is not None:
        return f"given {shown(given)}; {unusable}"
    allowed = " or ".join(dict.fromkeys(_allowed(finding) for finding in findings))
    near = ""
    if isinstance(given, str):
        literals = [name for finding in findings if finding["type"] == "literal_error" for name in _literals(finding)]
        near = near_match(given, literals)
    return f"given {shown(given)}; allowed: {allowed}{near}"


def _allowed(finding: Mapping[str, Any]) -> str:
    kind, context = finding["type"], finding.get("ctx", {})
    if kind == "literal_error":
        return ", ".join(_literals(finding))
    simple = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "text",
        "bool_type": "true or false",
        "tuple_type": "a list",
        "none_required": "nothing (null)",
        "model_type": "a section of keys",
        "model_attributes_type": "a section of keys",
        "dict_type": "a section of keys",
        "union_tag_not_found": "a section of keys",
        "finite_number": "a finite number",
        "is_instance_of": "rows from Python (a datasets.Dataset, a pandas or Arrow table, a list of dicts)",
    }
    if kind in simple:
        return simple[kind]
    bounds = {"greater_than": "more than {gt}", "greater_than_equal": "at least {ge}", "less_than": "less than {lt}"}
    bounds |= {"less_than_equal": "at most {le}", "string_pattern_mismatch": "text like {pattern}"}
    if kind in bounds:
        return bounds[kind].format(**context)
    message: str = finding["msg"]
    return message.removeprefix("Value error, ")


def _literals(finding: Mapping[str, Any]) -> list[str]:
    text: str = finding["ctx"]["expected"]
    return [part.strip().strip("'") for part in text.replace(" or ", ", ").split(",")]


def _walk(location: Sequence[str | int], model: type[BaseModel]) -> tuple[list[str], Any]:
    """The dotted path of a finding, and the annotation of what is there.

    The path is without pydantic's names of union members, such as `tuple[int, ...]`.
    """
    path: list[str] = []
    here: Any = model
    for part in location:
        if isinstance(part, int):
            path.append(str(part))
            here = _item_type(here)
            continue
        if part == "[key]":  # pydantic's mark of a wrong name
            continue
        tagged = _tagged_member(here, part)
        if tagged is not None:
            here = tagged
            continue
        values = _values_of_mapping(here)
        if values is not None:
            path.append(part)
            here = values
            continue
        owner = _as_model(here)
        if owner is not None and part in owner.model_fields:
            path.append(part)
            here = owner.model_fields[part].annotation
        elif owner is not None and part != owner.__name__ and not _names_member(here, part):
            path.append(part)  # an unknown key
    return path, here


def _tagged_member(annotation: Any, tag: str) -> Any:
    """The member of a union that carries this tag; None if there is none."""
    for member in get_args(annotation):
        if any(isinstance(mark, Tag) and mark.tag == tag for mark in getattr(member, "__metadata__", ())):
            return member
    return None


def _values_of_mapping(annotation: Any) -> Any:
    """The annotation of the values of a mapping, None for anything else."""
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def _names_member(annotation: Any, part: str) -> bool:
    if get_origin(annotation) not in (typing.Union, types.UnionType):
        return False
    if part.startswith(("tuple[", "literal[", "function-", "constrained-")) or part in (
        "int",
        "str",
        "float",
        "bool",
        "none",
    ):
        return True
    return any(getattr(member, "__name__", None) == part for member in get_args(annotation))


def _as_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for member in get_args(annotation):
        found = _as_model(member)
        if found is not None:
            return found
    return None


def _item_type(annotation: Any) -> Any:
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    for member in get_args(annotation):
        found = _item_type(member)
        if found is not None:
            return found
    return None
