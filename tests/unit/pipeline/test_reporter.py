"""Lines of progress where there is no terminal."""

from __future__ import annotations

import pytest

from raybrew.pipeline import reporter
from raybrew.pipeline.reporter import LineReporter


def test_lines_tell_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now)
    lines: list[str] = []
    with LineReporter(lines.append).bar("capture x", 1000, "rows") as update:
        # A continued run begins in the middle; what was done before says nothing of its speed.
        for seconds, done in ((0.0, 400), (0.5, 500), (5.0, 550), (10.0, 600), (20.0, 800), (30.0, 1000)):
            now = seconds
            update(done, f"{done} MiB")
    assert lines == [
        "capture x: 400/1000 rows  400 MiB",
        "capture x: 500/1000 rows  500 MiB",  # half a second is too short to judge by
        "capture x: 600/1000 rows  20.0 rows/s, 0:00:20 left  600 MiB",
        "capture x: 800/1000 rows  20.0 rows/s, 0:00:10 left  800 MiB",
        "capture x: 1000/1000 rows  20.0 rows/s  1000 MiB",
    ]
