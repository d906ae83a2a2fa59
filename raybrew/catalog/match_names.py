"""TextBrewer's names of match sets, such as L3_hidden_mse, as a loss over layers matched evenly.

A name is `<student>_<set>`: the student stands for a depth, the set for a loss. TextBrewer spells each set out for
a teacher of 12 layers and one width; here the rule `even` finds the pairs for the teacher that is there, and widths
are bridged where they differ. So L3n (width 384) and L4t (312) mean the same as L3 and L4. The `small` sets name every
second layer in TextBrewer; by the rule they compare all 12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["MATCH_NAMES", "MATCH_SETS", "MatchSet", "match_set"]

#: Last part of a name -> loss. The s of `smmd` and `sgram` says that both layers of a pair are the same.
MATCH_SETS: Mapping[str, str] = MappingProxyType(
    {
        "hidden_mse": "hidden_mse",
        "hidden_smmd": "mmd",
        "hidden_sgram": "gram",
        "attention_mse": "attention_mse",
        "attention_mse_sum": "attention_mse_sum",
        "attention_ce": "attention_ce",
        "attention_ce_mean": "attention_ce_mean",
    }
)

#: Depth of T12-nano and Electra-small, the students of the `small` sets.
_SMALL_DEPTH = 12

_NAME = re.compile(rf"(?:L([1-9]\d*)[a-z]?|small)_({'|'.join(MATCH_SETS)})")


class MatchSet(NamedTuple):
    """What a name stands for: `loss` over layers matched evenly, for students of `depth` layers."""

    depth: int
    loss: str


def match_set(name: str) -> MatchSet | None:
    """The set called `name`, of TextBrewer's or for another depth (L5_hidden_mse); None if it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return MatchSet(int(found[1] or _SMALL_DEPTH), MATCH_SETS[found[2]])


#: The names that TextBrewer's own examples use.
MATCH_NAMES: tuple[str, ...] = (
    *(f"L3_{name}" for name in MATCH_SETS if name != "hidden_sgram"),
    "L3n_hidden_mse",
    *(f"L4_{name}" for name in MATCH_SETS if name not in ("hidden_mse", "hidden_sgram")),
    "L4t_hidden_mse",
    "L4t_hidden_sgram",
    "L6_hidden_mse",
    "L6_hidden_smmd",
    "small_hidden_mse",
    "small_hidden_smmd",
)
