"""`metrics.jsonl`: the record of a run, one JSON object per line. Everything else that shows metrics mirrors it.

A line holds `step`, `epoch`, `time`, `kind` ("train", "eval" or "event") and its values. Lines are strict JSON: NaN
and the infinities are written as the strings "nan", "inf" and "-inf", and read back as floats.

How no step appears twice and none is missing after a resume: everything about step S is written, then `sync`, then
the checkpoint of S. A resumed run calls `truncate_after(S)`, which drops what a dead process wrote beyond its last
checkpoint, and goes on with S + 1. Events follow the same rule: those of step S ("interrupted", an earlier "resumed")
stay, those of later steps go with the steps they tell of.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from raybrew.errors import RunError, writing
from raybrew.files import replacing

__all__ = ["NOT_FINITE", "TEXT_KEYS", "MetricsLog", "read_metrics"]

#: Lines are read all at once. A million steps, each logged, come to a quarter of it.
_MAX_BYTES = 1 << 30
#: How numbers that JSON lacks are written.
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
#: Keys whose values are always text, whatever they spell.
TEXT_KEYS = frozenset({"kind", "event", "message", "stage", "judge"})


class MetricsLog:
    """Append-only JSON lines. The file is opened by the first `write`; one process writes, any number may read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append `record` as one line and hand it to the operating system (a killed process loses nothing).

        TypeError for values other than text, numbers, booleans, None and lists or mappings of them: a tensor here
        would hide a wait for the device. EnvironmentProblem if the disk does not take the line.
        """
        line = json.dumps(_strict(record), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
        with writing(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _mend_tail(self.path)
                self._file = open(self.path, "a", encoding="utf-8", newline="\n", buffering=1)  # noqa: SIM115
            self._file.write(line + "\n")

    def sync(self) -> None:
        """Bring all lines to the disk itself; call it before a checkpoint counts on them."""
        if self._file is not None:
            with writing(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def truncate_after(self, step: int) -> int:
        """Drop every line with a step beyond `step` and a torn last line; returns the number of lines dropped.

        The file is rewritten beside itself and renamed, so that a crash leaves either the old or the new one.
        """
        self.close()
        if not self.path.exists():
            return 0
        lines, torn = _read_lines(self.path)
        kept = [raw for raw, record in lines if _step_of(record, self.path) <= step]
        dropped = len(lines) - len(kept) + torn
        if dropped:
            with writing(self.path), replacing(self.path) as new, new.open("wb") as file:
                file.writelines(raw + b"\n" for raw in kept)
            _sync_folder(self.path.parent)
        return dropped

    def close(self) -> None:
        """Flush and close; a later `write` opens the file again."""
        file, self._file = self._file, None
        if file is not None:
            with writing(self.path):
                file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str], kind: str | None = None) -> list[dict[str, Any]]:
    """All records in the order written, or those of one `kind`; a torn last line is left out. A missing file has none.

    RunError for a damaged line elsewhere, with its number: that is no trace of a crash, and no number to guess.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = _read_lines(path, b"" if kind is None else f'"{kind}"'.encode())[0]
    return [_floats(record) for _, record in lines if kind is None or record.get("kind") == kind]


def _read_lines(path: Path, holding: bytes = b"") -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """(raw line, record) of every whole line, and how many torn lines (0 or 1) end the file.

    Lines without the bytes `holding` are not decoded.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise RunError(f"{path} is larger than {_MAX_BYTES >> 20} MiB, so not what raybrew writes there; restore it")
    raws = path.read_bytes().split(b"\n")
    lines: list[tuple[bytes, dict[str, Any]]] = []
    last = max((number for number, raw in enumerate(raws) if raw.strip()), default=-1)
    for number, raw in enumerate(raws[: last + 1]):
        if holding not in raw or not raw.strip():
            continue
        try:
            record = json.loads(raw.decode("utf-8"))
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number == last:
                return lines, 1
            raise RunError(
                f"{path} line {number + 1} is no JSON object ({error}); the file was changed by something other than "
                "raybrew. Restore it, or delete that line"
            ) from None
        lines.append((raw, record))
    return lines, 0


def _mend_tail(path: Path) -> None:
    """Cut a torn last line, or end a whole one that lost its newline, before something is appended to it."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        size = file.seek(0, io.SEEK_END)
        start = size
        tail = b""
        while start and b"\n" not in tail:
            step = min(start, 65536)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        tail = tail[tail.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            json.loads(tail.decode("utf-8"))
        except (ValueError, RecursionError):
            file.truncate(size - len(tail))
        else:
            file.seek(0, io.SEEK_END)
            file.write(b"\n")


def _step_of(record: dict[str, Any], path: Path) -> int:
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise RunError(f"{path} holds a line without an integer `step`: {json.dumps(record)[:200]}")
    return step


def _strict(value: Any) -> Any:
    """`value` in types that strict JSON has."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(name): _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    raise TypeError(f"metrics take text, numbers and booleans, not {type(value).__name__}: {value!r}")


def _floats(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: NOT_FINITE.get(value, value) if isinstance(value, str) and name not in TEXT_KEYS else value
        for name, value in record.items()
    }


def _sync_folder(folder: Path) -> None:
    # Some systems and network file systems cannot sync a folder; the rename is then as durable as they make it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
