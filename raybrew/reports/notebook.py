"""Tables as HTML, for objects that notebooks show. All text is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

__all__ = ["html_table"]

_CELL = "style='text-align:left'"


def html_table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    """A heading, a table (numbers to the right below a `header`, else names to the left) and a line for each note."""
    lines = [f"<h4>{html.escape(title)}</h4>", "<table>"]
    if header:
        lines.append("<tr>" + "".join(f"<th {_CELL}>{html.escape(cell)}</th>" for cell in header) + "</tr>")
    for first, *others in rows:
        tag = "td" if header else "th"
        cells = [f"<{tag} {_CELL}>{html.escape(first)}</{tag}>"]
        cells += [f"<td{'' if header else ' ' + _CELL}>{html.escape(cell)}</td>" for cell in others]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>", *(f"<p>{html.escape(note)}</p>" for note in notes)])
