"""Students that a sweep keeps or trains again, and training states that go from one trial to another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from raybrew.errors import EnvironmentProblem
from raybrew.records.ranking import BEST, Standing, best_mark
from raybrew.tracking.jsonl import MetricsLog
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.run_folder import RunFolder

__all__ = ["RunStates", "Students"]


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
        found = [run for run in kept if (summary := self.run(run).summary()) is not None and summary.pruned is not None]
        if ranking and not self.has_best(ranking[0].run):
            found.insert(0, ranking[0].run)
        found = [run for run in dict.fromkeys(found) if run not in self._asked]
        self._asked.update(found)
        return found

    def has_best(self, run: str) -> bool:
        """Whether the student of the recommended `run` is there, in `best` or in its own folder."""
        mark = best_mark(self.folder / BEST)
        return (mark is not None and mark["run"] == run) or self.run(run).has_student


class RunStates:
    """The states of runs below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(self, source: str, step: int, target: str) -> bool:
        """Let run `target` go on where `source` stood after `step` steps; False if that state is not there any more.

        The state comes last: a copy that was cut short is no start, and is made again.
        """
        old, new = self.folder / source, self.folder / target
        try:
            new.mkdir(parents=True, exist_ok=True)
            if not (old / "metrics.jsonl").is_file() or not Checkpoints(old / "checkpoints", 1).has(step):
                return False
            shutil.copyfile(old / "metrics.jsonl", new / "metrics.jsonl")
            log = MetricsLog(new / "metrics.jsonl")
            log.truncate_after(step)
            log.write({"step": step, "kind": "event", "event": "note", "message": f"the state of {source}"})
            log.sync()
            log.close()
            if (old / "student").is_dir():
                # The best so far; of this step or an earlier one, as the source has not gone on.
                _copy_folder(old / "student", new / "student")
            Checkpoints(new / "checkpoints", 1).take(old / "checkpoints", step)
        except OSError as error:
            raise EnvironmentProblem(f"cannot copy the state of {old} to {new}: {error.strerror or error}") from error
        return True

    def drop(self, run: str) -> None:
        """Remove the states of a trial that will not go on."""
        Checkpoints(self.folder / run / "checkpoints", 1).clear()


def _copy_folder(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
