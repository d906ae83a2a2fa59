"""Where the student is that a sweep recommends. A folder is never taken for another run's student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raybrew.errors import RunError
from raybrew.training.run_folder import RunFolder

__all__ = ["BEST", "BEST_MARK", "best_mark", "student_of_sweep"]

#: Folder of a sweep that holds a copy of the recommended student.
BEST = "best"
#: File in it that names the run, its configuration and its value.
BEST_MARK = "best.json"


def best_mark(folder: Path) -> dict[str, Any] | None:
    """What the folder `best` says of the student that it holds; None if it does not (older versions wrote no mark)."""
    try:
        mark = json.loads((folder / BEST_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    run = mark.get("run") if isinstance(mark, dict) else None
    # The name of a folder beside the sweep's, and no path out of there.
    return mark if isinstance(run, str) and run not in ("", "..") and Path(run).name == run else None


def student_of_sweep(sweep: Path, run: str) -> Path:
    """The folder of the student of `run`, which the sweep in the folder `sweep` recommends.

    That is `best` if it holds this run's student, else the run's own. RunError if neither is there.
    """
    mark = best_mark(sweep / BEST)
    if mark is not None and mark["run"] == run:
        return sweep / BEST
    folder = RunFolder(sweep.parent / run, run)
    if folder.has_student:
        return folder.student
    raise RunError(
        f"{sweep} recommends a student that is not there: {folder.why_no_student()}, and so does the command of the "
        "sweep, which then writes it to `best`"
    )
