"""How a sweep chooses its configurations: `sweep.search.kind`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["SEARCHERS", "Searcher"]


@dataclasses.dataclass(frozen=True)
class Searcher:
    """One searcher. One of your own is such a row, named as `package.module:Name`."""

    summary: str
    target: str
    """module:function, f(SweepConfig) -> `raybrew.sweeps.search.Source`."""
    options: tuple[str, ...] = ()  #: keys of `sweep.search` that it reads
    lists: bool = False  #: goes through all combinations, so that every key needs values, and then ends
    learns: bool = False  #: what it gives depends on the results so far


#: Name -> searcher.
SEARCHERS: Mapping[str, Searcher] = MappingProxyType(
    {
        "random": Searcher(
            "draws each configuration at random; the n-th depends on the seed and n alone",
            "raybrew.sweeps.search:random_source",
            ("seed",),
        ),
        "grid": Searcher("every combination of the values, in order", "raybrew.sweeps.search:grid_source", lists=True),
        "optuna": Searcher(
            "learns from finished trials where to look (TPE); takes several objectives",
            "raybrew.sweeps.search:Optuna",
            ("seed", "objectives", "startup_trials"),
            learns=True,
        ),
    }
)
