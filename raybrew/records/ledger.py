"""The ledger of a sweep: appended line by line, each on the disk before the sweep goes on, and checked when read."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raybrew.config.sweep import ParameterConfig
from raybrew.errors import RunError
from raybrew.files import locked_folder
from raybrew.secrets import scrub
from raybrew.tracking.jsonl import MetricsLog, read_metrics

__all__ = ["LEDGER", "Ledger", "closed_as", "read_ledger"]

LEDGER = "ledger.jsonl"
#: Keys of a line whose values are text for people, from a command line or a library.
_WORDS = frozenset({"command", "error", "reason"})
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_UNKNOWN = "it names a trial that no earlier line begins"


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_run(value: Any) -> bool:
    """The name of a folder beside the sweep's, and no path out of there."""
    return isinstance(value, str) and _RUN.fullmatch(value) is not None


def _is_status(value: Any) -> bool:
    return value in ("done", "stopped", "failed")


def _is_values(value: Any) -> bool:
    """Values of a space, or whole sections."""
    return (
        isinstance(value, Mapping)
        and _is_changes(value.get("train.changes"))
        and isinstance(value.get("train", {}), Mapping)
    )


def _is_changes(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(one, Mapping) and _is_finite(one.get("at")) for one in value)
        and all(isinstance(one.get("values"), Mapping) for one in value)
    )


def _is_experiment(value: Any) -> bool:
    """Whether `value` has the sections of an experiment, and a space, if any, whose parameters can be shown.

    The rest is not checked, as an older version may have written it.
    """
    if not isinstance(value, Mapping):
        return False
    sections = {name: section for name, section in value.items() if name != "name"}
    if not all(section is None or isinstance(section, Mapping) for section in sections.values()):
        return False
    space = (sections.get("sweep") or {}).get("space")
    try:
        return space is None or all(ParameterConfig.model_validate(one) is not None for one in dict(space).values())
    except (ValueError, TypeError):
        return False


def _is_moment(value: Any) -> bool:
    """Step, share of all steps and metric."""
    return isinstance(value, list) and len(value) == 3 and _is_whole(value[0]) and all(map(_is_number, value))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_objectives(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_number, value))


def _is_scores(value: Any) -> bool:
    return isinstance(value, Mapping) and all(score is None or _is_number(score) for score in value.values())


def _is_members(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_values, value))


def _is_moves(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) and _unfit(one, _MOVE) is None for one in value)


_Check = Callable[[Any], bool]
_TIMES: Mapping[str, _Check] = {"seconds?": _is_finite, "overhead?": _is_finite}
#: One decision of a round: member `of` gives way to `run`, which goes on from `source`.
_MOVE: Mapping[str, _Check] = {
    "of": _is_run, "run": _is_run, "source": _is_run, "member": _is_whole, "values": _is_values, "begins": _is_moment,
    "new": _is_values,
}  # fmt: skip
#: Kind -> key -> what it must hold. A key that ends in "?" may be missing or null; other keys and kinds are free.
_LINES: Mapping[str, Mapping[str, _Check]] = MappingProxyType(
    {
        "sweep": {"experiment": _is_experiment, "name?": _is_text, "command?": _is_text, "judge?": _is_text},
        "session": {"at": _is_finite},
        "close": {"reason": _is_text},
        "room": {"slots": _is_whole},
        "teacher": {"rows": _is_whole, "computed?": _is_whole, "teacher?": _is_text, "signals?": _is_list},
        "trial": {
            "run": _is_run, "number": _is_whole, "role": _is_text, "values": _is_values, "seed": _is_whole,
            "applied?": _is_values, "gpus?": _is_finite, "member?": _is_whole, "source?": _is_run,
            "begins?": _is_moment,
        },
        "start": {"run": _is_run, "gpus?": _is_finite},
        "again": {"run": _is_run},
        "lost": {"run": _is_run, "error?": _is_text, "seconds?": _is_finite},
        "report": {"run": _is_run, "share": _is_finite, "value": _is_number},
        "interrupted": {"run": _is_run, **_TIMES},
        "pause": {"run": _is_run, "step": _is_whole, "share": _is_finite, "value": _is_number, **_TIMES},
        "end": {
            "run": _is_run, "status": _is_status, "value?": _is_number, "objectives?": _is_objectives,
            "error?": _is_text, "error_type?": _is_text, **_TIMES,
        },
        "round": {"number": _is_whole, "scores": _is_scores, "moves": _is_moves},
        "copy": {"run": _is_run, "source": _is_run},
        "population": {"members": _is_members, "asked?": _is_whole},
    }
)  # fmt: skip


class Ledger:
    """One writer; any number of readers. `at` of each line is the time in seconds since 1970."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = MetricsLog(folder / LEDGER)

    def records(self) -> list[dict[str, Any]]:
        """All whole lines so far; RunError for one that no sweep has written."""
        return read_ledger(self.folder / LEDGER)

    def write(self, kind: str, **values: Any) -> dict[str, Any]:
        """Append one line and bring it to the disk.

        Secrets leave what people wrote or libraries said. Values stay whole: a sweep is continued from them, and an
        experiment with a secret in it is refused before.
        """
        words = {key: scrub(value) for key, value in values.items() if key in _WORDS}
        record = {"kind": kind, "at": round(time.time(), 3), **values, **words}
        self._log.write(record)
        self._log.sync()
        return record

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep; RunLocked if another process is at it."""
        with locked_folder(self.folder, "sweep", self._is_finished):
            try:
                yield
            finally:
                self._log.close()

    def _is_finished(self) -> bool:
        return closed_as(self.records()) == "finished"


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a ledger in the order written; RunError names the first that no sweep has written."""
    records = read_metrics(path)
    trials: set[str] = set()
    for number, record in enumerate(records, 1):
        problem = _problem(record, trials)
        if problem is not None:
            raise RunError(
                f"{path} line {number}: {problem}; the file was changed by something other than raybrew. Restore it, "
                "or delete that line"
            )
        if record["kind"] == "trial":
            trials.add(record["run"])
    return records


def _problem(record: Mapping[str, Any], trials: set[str]) -> str | None:
    kind = record.get("kind")
    if not isinstance(kind, str):
        return "no kind"
    if record.get("at") is not None and not _is_finite(record["at"]):
        return "`at` is not a time"
    key = _unfit(record, _LINES.get(kind, {}))
    if key is not None:
        return f"a line of kind {kind!r} with an unfit `{key}`"
    if kind == "trial" and record.get("source") is not None:
        return None if record["source"] in trials and record.get("begins") is not None else _UNKNOWN
    if kind == "round":
        named = {*record["scores"], *(move[key] for move in record["moves"] for key in ("of", "source"))}
        return None if named <= trials else _UNKNOWN
    return None


def _unfit(record: Mapping[str, Any], checks: Mapping[str, _Check]) -> str | None:
    """The first key of `checks` whose value does not pass."""
    for name, check in checks.items():
        key = name.rstrip("?")
        value = record.get(key)
        if not (value is None and name.endswith("?")) and not check(value):
            return key
    return None


def closed_as(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the last session of a sweep ended, such as `finished`; None for one that was killed or is running."""
    marks = [record for record in records if record.get("kind") in ("session", "close")]
    return str(marks[-1]["reason"]) if marks and marks[-1]["kind"] == "close" else None
