"""Names for configurations that differ: only the settings in which they do, by the shortest clear key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["name_variants"]

#: More settings than this are counted rather than spelled out, unless it takes more to tell apart.
MAX_SETTINGS = 3
_ABSENT = object()


def name_variants(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """One text per entry of `settings`, such as `temperature=8, matches=hidden_mse`; empty where all agree."""
    flat = [_with_courses(_flat(entry), entry) for entry in _differing(settings)]
    keys = dict.fromkeys(key for entry in flat for key in entry)
    differing = [key for key in keys if len({entry.get(key, "none") for entry in flat}) > 1]
    # A list that differs in its losses says so itself; its elements need not.
    differing = [key for key in differing if not any(key.startswith(f"{other}[") for other in differing)]
    short = _short_keys(differing)
    spelled = [[f"{short[key]}={entry.get(key, 'none')}" for key in differing] for entry in flat]
    names = [_cut(words, MAX_SETTINGS) for words in spelled]
    for count in range(MAX_SETTINGS + 1, len(differing) + 1):
        # Names that others have too get more words, until they tell apart.
        often = Counter(names)
        names = [_cut(words, count) if often[name] > 1 else name for words, name in zip(spelled, names, strict=True)]
    return names


def _differing(settings: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """`settings` without the parts in which all agree; whole where one changes settings in the course of training."""
    if any(isinstance(entry.get("train"), Mapping) and entry["train"].get("changes") for entry in settings):
        return settings
    return _without_common(settings)


def _without_common(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{} for _ in entries]
    for name in dict.fromkeys(name for entry in entries for name in entry):
        values = [entry.get(name, _ABSENT) for entry in entries]
        if all(type(value) is type(values[0]) and value == values[0] for value in values):
            continue
        inner = _without_common(values) if all(isinstance(value, Mapping) for value in values) else values
        for kept, entry, value in zip(found, entries, inner, strict=True):
            if name in entry:
                kept[name] = value
    return found


def _cut(words: Sequence[str], count: int) -> str:
    rest = len(words) - count
    return ", ".join([*words[:count], *([f"+{rest} more"] if rest > 0 else [])])


def _with_courses(flat: dict[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """What `train.changes` makes of a key stands with that key: `temperature=4→2`."""
    train = settings.get("train")
    changes = train.get("changes") if isinstance(train, Mapping) else None
    if not changes:
        return flat
    found = {key: text for key, text in flat.items() if not key.startswith("train.changes")}
    for change in changes:
        for key, value in change["values"].items():
            name = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", key)
            found[name] = f"{found.get(name, 'none')}→{_text(value)}"
    return found


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Dotted key -> text of every plain value; a list of mappings also has its kinds joined under its own key."""
    if isinstance(value, Mapping):
        found: dict[str, str] = {}
        for name, item in value.items():
            found |= _flat(item, f"{path}.{name}" if path else str(name))
        return found
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, Mapping) for item in value):
            found = {path: "+".join(str(item.get("loss") or item.get("kind") or "?") for item in value)}
            for index, item in enumerate(value):
                found |= _flat(item, f"{path}[{index}]")
            return found
        return {path: "[" + ", ".join(_text(item) for item in value) + "]" if value else "none"}
    return {path: _text(value)}


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each key cut to its last parts, as few as tell it from the others."""
    short = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            unique = sum(f".{other}".endswith(f".{name}") for other in keys) == 1
            # "weight" of which match, "kind" of what? These need their owner.
            owned = count < len(parts) and (name == "kind" or parts[-count - 1].endswith("]"))
            if unique and not owned:
                break
        short[key] = name
    return short
