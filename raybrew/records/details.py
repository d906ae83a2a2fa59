"""The larger files of a run folder: its configuration and its curves."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.errors import RunError
from raybrew.records.sections import bounded_text
from raybrew.secrets import scrub
from raybrew.tracking.jsonl import read_metrics

__all__ = ["RunDetails", "dict_at"]

#: A method that a configuration names.
_METHOD = re.compile(r"""\bmethod["']?\s*:(?!\s*(?:null\b|~|$))""", re.MULTILINE)


class RunDetails:
    """What is in the larger files of a run folder, read on first use; `told` are problems of the others."""

    def __init__(self, folder: Path, told: Sequence[str] = ()) -> None:
        self.folder = folder
        self.told = tuple(told)

    @property
    def config(self) -> dict[str, Any]:
        return self._config[0]

    @functools.cached_property
    def config_text(self) -> str:
        return str(scrub(self._text[0]))

    @property
    def method(self) -> Any:
        """`distill.method`. Most configurations name none, and YAML takes long to read."""
        return dict_at(self.config, "distill").get("method") if _METHOD.search(self._text[0]) else None

    @property
    def problems(self) -> tuple[str, ...]:
        return (*self._text[1], *self._config[1], *self.told, *self._lines[1])

    def lines(self, kind: str) -> tuple[dict[str, Any], ...]:
        """Records of `metrics.jsonl`."""
        return self._lines[0].get(kind, ())

    @functools.cached_property
    def _text(self) -> tuple[str, list[str]]:
        try:
            return bounded_text(self.folder / "config.yaml"), []
        except FileNotFoundError:
            return "", ["config.yaml is missing"]
        except (OSError, ValueError) as error:
            return "", [f"config.yaml cannot be read: {error}"]

    @functools.cached_property
    def _config(self) -> tuple[dict[str, Any], list[str]]:
        problems: list[str] = []
        text, unread = self._text
        return {} if unread else _parse_config(text, problems), problems

    @functools.cached_property
    def _lines(self) -> tuple[dict[str, tuple[dict[str, Any], ...]], list[str]]:
        try:
            records = read_metrics(self.folder / "metrics.jsonl")
        except RunError as error:
            return {}, [str(error)]
        kinds: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            kinds.setdefault(str(record.get("kind")), []).append(record)
        found = {kind: tuple(each) for kind, each in kinds.items()}
        found["event"] = scrub(found.get("event", ()))
        return found, [] if records else ["metrics.jsonl is missing or empty: there are no curves"]


def dict_at(value: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping under `keys`, empty where any is missing or is no mapping."""
    found: Any = value
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _parse_config(text: str, problems: list[str]) -> dict[str, Any]:
    import yaml

    from raybrew.config.reading import describe, parse_yaml

    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        problems.append(f"config.yaml is no YAML:{describe(error)[:200]}")
        return {}
    if not isinstance(value, dict):
        problems.append("config.yaml holds no mapping")
        return {}
    return value
