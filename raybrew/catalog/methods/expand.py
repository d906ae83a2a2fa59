"""A method in a file's `distill` section: its values under those that are given, and what it does not go with.

A method decides of which parts training is made: logits, matches of certain losses, EMD, stages. Beside it weights,
layers and temperatures may be given, but no part may be added or taken away.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from raybrew.catalog.methods.base import Method

__all__ = ["contradictions", "with_method"]

#: How each of them says that there is no such part.
_NONE = {"matches": "[]", "emd": "null", "theseus": "null", "stages": "[]", "kd_weight": "0"}
#: Keys that say of which parts training is made; 0, nothing and [] stand for none.
_PARTS = ("matches", "emd", "theseus", "stages")


def with_method(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, keys of a `distill` section, with what else `method` sets.

    Sections within (`emd`) are filled up key by key, lists are taken as given.
    """
    result = dict(copy.deepcopy(dict(method.distill)))
    for key, value in given.items():
        own = result.get(key)
        result[key] = own | dict(value) if isinstance(own, dict) and isinstance(value, Mapping) else value
    return result


def contradictions(name: str, row: Method, given: Collection[str], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys that were `given` beside method `name`, whose `row` it is, and make another method of it.

    Each comes with what to do about it. `values` are those of the whole section, by key, as plain types.
    """
    method = row.distill
    made_of = {key for key in (*_PARTS, "kd_weight") if method.get(key)}
    found = []
    for key in (*_PARTS, "kd_weight"):
        if key not in given:
            continue
        do = f"drop distill.{key}, or distill.method"
        if values[key] and key not in made_of:
            # An override cannot take a key out of a file, but it can say that there is none.
            do = f"drop distill.{key} (on the command line: distill.{key}={_NONE[key]}), or distill.method"
            found.append((key, f"given, but method {name!r} has no such part; {do}"))
        elif not values[key] and key in made_of and (key != "kd_weight" or made_of == {"kd_weight"}):
            found.append((key, f"given as nothing, but method {name!r} is made of it; {do}"))
        elif key in ("matches", "stages") and values[key] and (losses := _losses(values)) != (own := _losses(method)):
            shown = (", ".join(sorted(each)) or "nothing but logits" for each in (losses, own))
            found.append((key, f"has {next(shown)}, but method {name!r} has {next(shown)}; {do}"))
    if "hard_label_weight" in given and not values["hard_label_weight"] and not made_of:
        found.append(
            ("hard_label_weight", f"given as 0, but method {name!r} is made of it; drop it, or distill.method")
        )
    return found


def _losses(section: Mapping[str, Any]) -> set[str]:
    """Names of the losses of all matches, those of stages too, and of what else a stage may do."""
    parts = [section, *(section.get("stages") or ())]
    names = {match["loss"] for part in parts for match in part.get("matches") or ()}
    return names | {key for key in ("emd", "theseus") if any(part.get(key) is not None for part in parts)}
