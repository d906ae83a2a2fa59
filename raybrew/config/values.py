"""What any value of an experiment must be, whatever key it stands at: plain, within bounds, and no secret."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from raybrew.config.base import Section, given_values
from raybrew.config.problems import raise_problems, shown
from raybrew.config.reading import MAX_DEPTH
from raybrew.config.rows import Rows
from raybrew.errors import ConfigError, Problem, ProblemCode
from raybrew.secrets import HIDDEN, secret_in, secret_variables

__all__ = ["check_run_id", "refuse_secrets", "show_value_of", "sound_values"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MAX_VALUES = 500_000
_MAX_KEY = 200
_MAX_TEXT = 4096
#: Beyond these, neither Arrow nor numpy holds a whole number.
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


def sound_values(values: Any) -> tuple[Any, list[Problem]]:
    """`values` in plain types, and the problems of those that no key takes, `***` standing in their place."""
    door = _Door()
    return door.checked(values, "", None, 0), door.problems


def refuse_secrets(values: Any) -> None:
    """ConfigError if an experiment, made in Python perhaps, holds a secret: what is stored is read again, so whole."""
    _, problems = sound_values(values)
    raise_problems("experiment", [problem for problem in problems if problem.code == "secret"])


def check_run_id(run_id: str | None) -> str | None:
    """`run_id`; ConfigError if it is no name of a folder beside other runs, or holds a secret."""
    if run_id is None:
        return None
    secret = secret_in(run_id)
    if secret is not None:
        words = f"holds what looks like a secret ({secret}), and becomes the name of a folder"
        raise ConfigError.of("--run-id", words, "secret")
    if _RUN_ID.fullmatch(run_id) is None:
        raise ConfigError.of(
            "--run-id",
            f"given {shown(run_id)}, but it names a folder beside other runs: up to 200 letters, digits, dots, dashes "
            "and underscores, the first a letter or digit",
        )
    return run_id


class _Door:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._count = 0
        self._variables = secret_variables()

    def checked(self, value: Any, key: str, name: str | None, depth: int) -> Any:
        self._count += 1
        if self._count > _MAX_VALUES:
            return self._refuse(key, f"more than {_MAX_VALUES} values") if self._count == _MAX_VALUES + 1 else HIDDEN
        if isinstance(value, Section):
            value = given_values(value)
        if isinstance(value, Mapping | list | tuple):
            if depth >= MAX_DEPTH:
                return self._refuse(key, f"lists and mappings are nested more than {MAX_DEPTH} deep")
            if isinstance(value, Mapping):
                return self._mapping(value, key, depth)
            return [self.checked(item, f"{key}.{index}", None, depth + 1) for index, item in enumerate(value)]
        if value is None or isinstance(value, bool | Rows):  # rows may hold anything
            return value
        if isinstance(value, int):
            if _SMALLEST <= value <= _LARGEST:
                return int(value)
            return self._refuse(key, "given a whole number of more than 63 bits")
        if isinstance(value, float):
            if math.isfinite(value):
                return float(value)
            return self._refuse(key, f"given {value}; allowed: a finite number")
        if isinstance(value, str):
            return self._text(str(value), key, name)
        kind = type(value).__name__
        return self._refuse(key, f"given a {kind}; allowed: text, a number, true, false, null, a list or a mapping")

    def _mapping(self, value: Mapping[Any, Any], key: str, depth: int) -> dict[str, Any]:
        found = {}
        for name, item in value.items():
            if not isinstance(name, str):
                self._refuse(key, f"given the key {shown(name)}; keys are text, so quote it")
            elif not name or len(name) > _MAX_KEY or not name.isprintable() or secret_in(name, None, self._variables):
                self._refuse(key, f"given the key {shown(name)}; allowed: printable text of 1 to {_MAX_KEY} characters")
            else:
                found[name] = self.checked(item, f"{key}.{name}" if key else name, name, depth + 1)
        return found

    def _text(self, value: str, key: str, name: str | None) -> str:
        if len(value) > _MAX_TEXT:
            return self._refuse(key, f"given {len(value)} characters; allowed: at most {_MAX_TEXT}")
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            return self._refuse(key, f"given {shown(value)}, which holds characters that are no text")
        if value == "???":
            return self._refuse(key, "required: '???' stands for a value that is still to be given", "required")
        if "${" in value:
            return self._refuse(
                key, f"given {shown(value)}; `${{` stands for another value, in files and overrides only"
            )
        secret = secret_in(value, name, self._variables)
        if secret is not None:
            # Not repeated: it would reach a log.
            return self._refuse(
                key, f"holds what looks like a secret ({secret}); remove it, and give it in the environment", "secret"
            )
        return value

    def _refuse(self, key: str, message: str, code: ProblemCode = "value") -> str:
        self.problems.append(Problem(key or "experiment", message, code))
        return HIDDEN


def show_value_of(value: Any) -> str:
    """A value of the space in a few characters, for tables, figures and messages."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if "loss" in value:
            layers, weight = value.get("layers", "even"), value.get("weight", 1.0)
            if isinstance(layers, list | tuple):
                layers = f"{len(layers)} pair{'' if len(layers) == 1 else 's'}"
            rule = "" if layers == "even" else f" {layers}"
            times = f"{weight:g}" if isinstance(weight, int | float) else show_value_of(weight)
            return f"{value['loss']}{rule}" + (f" x{times}" if weight != 1 else "")
        if "layers" in value and set(value) <= {"layers", "hidden", "heads", "feed_forward"}:
            return f"{value['layers']}x{value['hidden']}" if value.get("hidden") else _layers(value["layers"])
        return ", ".join(f"{key}={show_value_of(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " + ".join(show_value_of(item) for item in value) if value else "none"
    return str(value)


def _layers(count: int) -> str:
    return f"{count} layer{'' if count == 1 else 's'}"
