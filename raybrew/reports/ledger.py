"""The lines of a sweep's ledger, each checked before anything is decided from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raybrew.errors import RunError
from raybrew.tracking.jsonl import read_metrics

__all__ = ["LEDGER", "read_ledger"]

LEDGER = "ledger.jsonl"
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_run(value: Any) -> bool:
    """The name of a folder beside the sweep's, and no path out of there."""
    return isinstance(value, str) and _RUN.fullmatch(value) is not None


def _is_values(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_changes(value.get("train.changes"))


def _is_changes(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(one, Mapping) and _is_number(one.get("at")) for one in value)
        and all(isinstance(one.get("values"), Mapping) for one in value)
    )


def _is_sections(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        section is None or isinstance(section, Mapping) or name == "name" for name, section in value.items()
    )


def _is_moment(value: Any) -> bool:
    """Step, share of all steps and metric."""
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_scores(value: Any) -> bool:
    return isinstance(value, Mapping) and all(score is None or _is_number(score) for score in value.values())


def _is_moves(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)


_Check = Callable[[Any], bool]
#: Kind -> key -> what it must hold. A key that ends in "?" may be missing or null; other keys and kinds are free.
_LINES: Mapping[str, Mapping[str, _Check]] = MappingProxyType(
    {
        "sweep": {"experiment": _is_sections, "name?": _is_text, "command?": _is_text},
        "session": {"at": _is_number},
        "close": {"reason": _is_text},
        "room": {"slots": _is_whole},
        "trial": {
            "run": _is_run, "number": _is_whole, "role": _is_text, "values": _is_values, "seed": _is_whole,
            "applied?": _is_values, "gpus?": _is_number, "member?": _is_whole, "source?": _is_run,
            "begins?": _is_moment,
        },
        "start": {"run": _is_run},
        "lost": {"run": _is_run, "error?": _is_text},
        "report": {"run": _is_run, "share": _is_number, "value": _is_number},
        "pause": {
            "run": _is_run, "step": _is_whole, "share": _is_number, "value": _is_number, "seconds?": _is_number,
            "overhead?": _is_number,
        },
        "end": {
            "run": _is_run, "status": _is_text, "value?": _is_number, "seconds?": _is_number, "overhead?": _is_number,
            "error?": _is_text,
        },
        "round": {"number": _is_whole, "scores": _is_scores, "moves": _is_moves},
        "copy": {"run": _is_run, "source": _is_run},
        "population": {"members": _is_moves},
    }
)  # fmt: skip


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
    if record.get("at") is not None and not _is_number(record["at"]):
        return "`at` is not a time"
    for key, check in _LINES.get(kind, {}).items():
        value = record.get(key.rstrip("?"))
        if not (value is None and key.endswith("?")) and not check(value):
            return f"a line of kind {kind!r} with an unfit `{key.rstrip('?')}`"
    source = record.get("source") if kind == "trial" else None
    if source is not None and (source not in trials or record.get("begins") is None):
        return "a trial that begins where no earlier trial was"
    return None
