"""Where what a row names is: `module:name`, imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["load_target"]


def load_target(target: str) -> Any:
    """The object that `module:name` means."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
