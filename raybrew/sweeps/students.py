"""The students that a sweep keeps: which are there, which must be trained again, and which may go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raybrew.reports.ranking import Standing
from raybrew.reports.students import BEST, best_mark
from raybrew.training.run_folder import PRUNED, RunFolder

__all__ = ["Students"]


class Students:
    """Students of the runs beside the sweep in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked: set[str] = set()

    def run(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.folder.parent / name, name)

    def lacking(self, ranking: Sequence[Standing], keep: int) -> list[str]:
        """Runs that are to be trained again, each named once: the recommended one if its student is nowhere, and those
        of the `keep` best configurations that a sweep has pruned."""
        kept = [run for standing in ranking[:keep] for run in standing.runs]
        found = [run for run in kept if PRUNED in (self.run(run).summary() or {})]
        if ranking and not self.has_best(ranking[0].run):
            found.insert(0, ranking[0].run)
        found = [run for run in dict.fromkeys(found) if run not in self._asked]
        self._asked.update(found)
        return found

    def has_best(self, run: str) -> bool:
        """Whether the student of the recommended `run` is there, in `best` or in its own folder."""
        mark = best_mark(self.folder / BEST)
        return (mark is not None and mark["run"] == run) or self.run(run).has_student
