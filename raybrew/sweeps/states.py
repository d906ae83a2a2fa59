"""Training states of trials: copied from one run folder to another, and removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from raybrew.errors import EnvironmentProblem
from raybrew.tracking.jsonl import MetricsLog
from raybrew.training.checkpoints import Checkpoints

__all__ = ["RunStates"]


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
