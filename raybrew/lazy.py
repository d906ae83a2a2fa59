"""Packages whose names load on first use, so that importing them stays light: their `__init__.pyi` is the one list."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["attach_stub"]


def attach_stub(package: str, init_file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of `package`, for the names that the stub beside `init_file` imports."""
    statements = ast.parse(Path(init_file).with_suffix(".pyi").read_bytes()).body
    imports = [statement for statement in statements if isinstance(statement, ast.ImportFrom)]
    where = {alias.name: str(statement.module) for statement in imports for alias in statement.names}

    def load(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(where[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(where), sorted(where)
