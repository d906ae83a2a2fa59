"""Parts of the user's own in every family of the catalogue: `package.module:Name` in an experiment file.

The name means a row of the family (`Method`, `NamedShape`, `TaskSpec`, `Searcher`, `Scheduler`, `TrackerSpec`) or, for
losses, layer rules and initialisations, the function itself. Rows are imported with the file that names them, functions
when a verb is about to run.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from raybrew.config.problems import Problem, UnusableError, near_match, raise_problems
from raybrew.errors import ConfigError

__all__ = ["FunctionName", "is_outside", "load_outside", "row_name", "row_of"]

Row = TypeVar("Row")

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_outside(name: object) -> bool:
    """Whether `name` is written as `package.module:Name`, not as a name of the catalogue."""
    return isinstance(name, str) and ":" in name


def _as_function_name(value: Any) -> Any:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError("a function of your own as package.module:function")
    return value


#: A function of the user's, `package.module:function`; only its form is checked, nothing is imported.
FunctionName = Annotated[str, BeforeValidator(_as_function_name)]


def row_name(wanted: type) -> Any:
    """The type of names of rows of the user's; the row is imported and its type checked as the file is read."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or _NAME.fullmatch(value) is None:
            raise ValueError(f"a {wanted.__name__} of your own as package.module:Name")
        _load(value, wanted)
        return value

    return Annotated[str, BeforeValidator(check)]


def load_outside(target: str, key: str, wanted: type | None = None) -> Any:
    """What `package.module:Name` means, the folder raybrew runs in included: an instance of `wanted`, or a function.

    ConfigError, which names `key`, if it cannot be imported or is something else.
    """
    try:
        return _load(target, wanted)
    except UnusableError as error:
        raise ConfigError.of(key, f"given {target!r}; {error}", "missing") from error


def row_of(rows: Mapping[str, Row], name: str, key: str, wanted: type[Row]) -> Row:
    """The row called `name`: one of the catalogue, or of the user's. ConfigError names `key`."""
    if is_outside(name):
        row: Row = load_outside(name, key, wanted)
        return row
    if name not in rows:
        allowed = f"allowed: {', '.join(rows)}, or package.module:Name"
        raise_problems(key, [Problem(key, f"given {name!r}; {allowed}{near_match(name, rows)}", "unknown")])
    return rows[name]


def _load(target: str, wanted: type | None) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise UnusableError(
            f"{module_name} cannot be imported ({type(error).__name__}: {error}); it must be installed or lie in "
            f"{folder}"
        ) from error
    found = getattr(module, name, None)
    if callable(found) if wanted is None else isinstance(found, wanted):
        return found
    what = "function" if wanted is None else wanted.__name__
    own = {key: each for key, each in vars(module).items() if not key.startswith("_")}
    fitting = [key for key, each in own.items() if (callable(each) if wanted is None else isinstance(each, wanted))]
    raise UnusableError(f"{module_name} has no such {what}{near_match(name, fitting)}")
