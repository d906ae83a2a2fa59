"""Overrides of the command line: `section.key=value`, the value being YAML; numbers in a key count a list's entries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from raybrew.config.experiment import Experiment
from raybrew.config.problems import raise_problems, shown
from raybrew.config.reading import MAX_DEPTH, describe, merged, parse_yaml
from raybrew.errors import Problem

__all__ = ["apply_overrides"]

_MAX_KEY = 500
#: `matches[0].weight` is `matches.0.weight`.
_INDEX = re.compile(r"\[(\d{1,9})\]")


def apply_overrides(values: Any, overrides: Sequence[str]) -> Any:
    """`values` with each override in turn laid over them; ConfigError that lists all that cannot be."""
    problems = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key or key.startswith("-"):
            problems.append(Problem("override", f"reads section.key=value, given {shown(text)}"))
            continue
        path = _INDEX.sub(r".\1", key).split(".")
        if len(key) > _MAX_KEY or len(path) > MAX_DEPTH or not all(path):
            allowed = f"allowed: names with one point between them, at most {_MAX_KEY} characters and {MAX_DEPTH} names"
            problems.append(Problem(shown(key), f"not a key; {allowed}"))
            continue
        try:
            # An empty value is none; a mapping is laid over the one that is there.
            given = parse_yaml(value) if value else None
            if len(path) == 1:  # a section may be written shortly
                given = Experiment.long_form({key: given})[key]
            values = _laid(values, path, given)
        except yaml.YAMLError as error:
            problems.append(Problem(key, f"the value is not YAML:{describe(error)}"))
        except LookupError as error:
            problems.append(Problem(key, str(error.args[0])))
    raise_problems("command line", problems)
    return values


def _laid(here: Any, path: Sequence[str], value: Any) -> Any:
    """`here` with `value` laid over what is at `path`, in new containers; LookupError if a list has no such entry."""
    if not path:
        return merged(here, value)
    if isinstance(here, list):
        index = int(path[0]) if path[0].isdecimal() else -1
        if not 0 <= index < len(here):
            there = f"its entries are 0 to {len(here) - 1}" if here else "it is empty"
            raise LookupError(f"the list has no entry {path[0]!r}; {there}")
        if len(path) > 1 and not isinstance(here[index], dict | list):
            raise LookupError(
                f"entry {index} of the list is {shown(here[index])}, which has no keys; give it as a whole"
            )
        return [_laid(item, path[1:], value) if place == index else item for place, item in enumerate(here)]
    sections = here if isinstance(here, dict) else {}
    # A mapping may hold a dotted key, as `sweep.space` does.
    length = next((n for n in range(len(path), 1, -1) if ".".join(path[:n]) in sections), 1)
    name = ".".join(path[:length])
    if length == len(path) and name not in sections:
        return sections | {name: value}
    return sections | {name: _laid(sections.get(name), path[length:], value)}
