"""`${section.key}` and `${oc.env:NAME}` in the values of an experiment, resolved by OmegaConf."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

from raybrew.config.problems import raise_problems, shown
from raybrew.config.reading import MAX_DEPTH
from raybrew.errors import Problem, first_line

__all__ = ["resolved"]

_MARK = "${"
#: Values that interpolations stand for, all together: each is looked up by itself, which takes its time.
_MAX_VALUES = 10_000


def resolved(values: Any, source: str) -> Any:
    """`values` with what their interpolations stand for; ConfigError that lists those that stand for nothing."""
    if not _interpolates(values):
        return values
    from omegaconf import OmegaConf

    resolver = _Resolver()
    resolver.parse(values, "")
    raise_problems(source, resolver.problems)
    found = resolver.written(values, OmegaConf.create(values), "")
    raise_problems(source, resolver.problems)
    return found


def _interpolates(value: Any) -> bool:
    if isinstance(value, str):
        return _MARK in value
    return any(_interpolates(item) for _, item in _items(value))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    yield from value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()


class _Resolver:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._count = 0

    def parse(self, value: Any, key: str) -> None:
        """Name each interpolation that is none: OmegaConf stops at the first, and does not say where it is."""
        from omegaconf import OmegaConf

        for name, item in _items(value):
            self.parse(item, _joined(key, name))
        if isinstance(value, str) and _MARK in value:
            self._guarded(key, value, lambda: OmegaConf.create({"value": value}))

    def written(self, value: Any, node: Any, key: str) -> Any:
        """What stands in the files as `value`, and in the config as `node`."""
        if not _interpolates(value):
            return value
        found = {}
        for name, item in _items(value):
            here = _joined(key, name)
            if isinstance(item, dict | list):
                found[name] = self.written(item, node[name], here)
            elif isinstance(item, str) and _MARK in item:
                found[name] = self._meant(
                    self._guarded(here, item, functools.partial(operator.getitem, node, name)), here, 0
                )
            else:
                found[name] = item
        return found if isinstance(value, dict) else list(found.values())

    def _meant(self, node: Any, key: str, depth: int) -> Any:
        """The plain values of what an interpolation stands for, which may hold others."""
        from omegaconf import DictConfig, ListConfig

        self._count += 1
        if self._count > _MAX_VALUES or depth > MAX_DEPTH:
            if not self.problems:
                self.problems.append(Problem(key, "interpolations make it hold itself, or too many values"))
            return None
        if not isinstance(node, DictConfig | ListConfig):
            return node
        found = {}
        for name in node if isinstance(node, DictConfig) else range(len(node)):
            here = _joined(key, name)
            found[name] = self._meant(
                self._guarded(here, None, functools.partial(operator.getitem, node, name)), here, depth + 1
            )
            if self.problems:
                break
        return found if isinstance(node, DictConfig) else list(found.values())

    def _guarded(self, key: str, written: Any, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # a resolver may raise anything, and so may the parser of a deep one
            if isinstance(error, RecursionError):
                text = "interpolations are nested too deep, or stand for each other"
            else:
                text = first_line(error)
            given = "" if written is None else f"given {shown(written)}: "
            self.problems.append(Problem(key, f"{given}{text}"))
            return None


def _joined(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
