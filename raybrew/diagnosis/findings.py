"""What `raybrew doctor` says: findings, each with its remedy."""

from __future__ import annotations

import dataclasses
import html
from typing import Any, Literal

__all__ = ["Diagnosis", "Finding", "Status"]

Status = Literal["ok", "warning", "problem"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at. A `problem` keeps raybrew from working, a `warning` may."""

    topic: str
    status: Status
    message: str
    remedy: str = ""

    def plain(self) -> dict[str, str]:
        """As plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All findings of one look."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        """What keeps raybrew from working."""
        return [finding for finding in self.findings if finding.status == "problem"]

    @property
    def warnings(self) -> list[Finding]:
        """What may keep it from working, or makes it slow."""
        return [finding for finding in self.findings if finding.status == "warning"]

    def plain(self) -> list[dict[str, Any]]:
        """As plain JSON values."""
        return [finding.plain() for finding in self.findings]

    def _repr_html_(self) -> str:
        """One row a finding, for notebooks."""
        colours = {"ok": "#1a7f37", "warning": "#9a6700", "problem": "#cf222e"}
        rows = "".join(
            f"<tr><td style='color:{colours[each.status]};text-align:left'>{each.status}</td>"
            f"<td style='text-align:left'>{html.escape(each.topic)}</td>"
            f"<td style='text-align:left'>{html.escape(each.message)}"
            + (f"<br><i>{html.escape(each.remedy)}</i>" if each.remedy else "")
            + "</td></tr>"
            for each in self.findings
        )
        return f"<table>{rows}</table>"
