"""`${section.key}` and `${oc.env:NAME}` in the values of an experiment, resolved by OmegaConf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raybrew.config.problems import Problem, raise_problems, shown
from raybrew.config.reading import MAX_DEPTH
from raybrew.errors import first_line

__all__ = ["resolved"]

_MARK = "${"
_MAX_VALUES = 200_000


def resolved(values: Any, source: str) -> Any:
    """`values` with what their interpolations stand for; ConfigError that lists those that stand for nothing."""
    if not _interpolates(values):
        return values
    from omegaconf import OmegaConf

    resolver = _Resolver()
    resolver.checked(values, "")
    raise_problems(source, resolver.problems)
    found = resolver.plain(OmegaConf.create(values), "", 0)
    raise_problems(source, resolver.problems)
    return found


def _interpolates(value: Any) -> bool:
    if isinstance(value, str):
        return _MARK in value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_interpolates, parts))


class _Resolver:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._count = 0

    def checked(self, value: Any, key: str) -> None:
        """Parse each interpolation: OmegaConf stops at the first bad one, and does not say where it is."""
        from omegaconf import OmegaConf

        if isinstance(value, dict | list):
            for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                self.checked(item, _joined(key, name))
        elif isinstance(value, str) and _MARK in value:
            self._guarded(key, value, lambda: OmegaConf.create({"value": value}))

    def plain(self, node: Any, key: str, depth: int) -> Any:
        """The plain values of a config; one that interpolations make too deep or too large is a problem."""
        from omegaconf import DictConfig, ListConfig

        self._count += 1
        if self._count > _MAX_VALUES or depth > MAX_DEPTH:
            if not self.problems:
                self.problems.append(Problem(key, "interpolations make it hold itself, or too many values"))
            return None
        if isinstance(node, DictConfig):
            return {name: self._item(node, name, key, depth) for name in map(str, node)}
        if isinstance(node, ListConfig):
            return [self._item(node, index, key, depth) for index in range(len(node))]
        return node

    def _item(self, node: Any, name: str | int, key: str, depth: int) -> Any:
        here = _joined(key, name)
        written = node._get_node(name, validate_access=False)
        value = self._guarded(here, written._value() if written is not None else None, lambda: node[name])
        return self.plain(value, here, depth + 1)

    def _guarded(self, key: str, written: Any, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # a resolver may raise anything, and so may the parser of a deep one
            if isinstance(error, RecursionError):
                text = "interpolations are nested too deep, or stand for each other"
            else:
                text = first_line(error)
            self.problems.append(Problem(key, f"given {shown(written)}: {text}"))
            return None


def _joined(key: str, name: str | int) -> str:
    return f"{key}.{name}" if key else str(name)
