"""What notebooks show: tables as HTML, all text escaped, and plots that need no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from raybrew.runtime import quiet_libraries

__all__ = ["html_table", "prepare_notebook"]

_CELL = "style='text-align:left'"
#: A number and its unit stay on one line, however wide the first column is.
_NUMBER = "style='text-align:right;white-space:nowrap'"


def html_table(title: str, rows: Sequence[Sequence[str]], header: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    """A heading, a table (numbers to the right below a `header`, else names to the left) and a line for each note."""
    lines = [f"<h4>{html.escape(title)}</h4>", "<table>"]
    if header:
        heads = [f"<th {_NUMBER if place else _CELL}>{html.escape(cell)}</th>" for place, cell in enumerate(header)]
        lines.append(f"<tr>{''.join(heads)}</tr>")
    for first, *others in rows:
        tag = "td" if header else "th"
        cells = [f"<{tag} {_CELL}>{html.escape(first)}</{tag}>"]
        cells += [f"<td {_NUMBER if header else _CELL}>{html.escape(cell)}</td>" for cell in others]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>", *(f"<p>{html.escape(note)}</p>" for note in notes)])


def prepare_notebook() -> None:
    """From now on plotly figures show in this notebook from a copy of plotly's code that lies in its first output.

    plotly's own `notebook` renderer asks a server for what typesets formulas, with every figure. And libraries do not
    warn of widgets and GPU kernels that are not there.
    """
    import warnings

    import plotly.io
    from plotly.io.base_renderers import NotebookRenderer

    quiet_libraries()
    warnings.filterwarnings("ignore", message="IProgress not found")

    class Inline(NotebookRenderer):  # type: ignore[misc]
        def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
            page = plotly.io.to_html(
                fig_dict,
                config=self.config,
                include_plotlyjs=False,
                include_mathjax=False,
                full_html=False,
                default_height=fig_dict.get("layout", {}).get("height") or 450,
            )
            return {"text/html": page}

    plotly.io.renderers["raybrew"] = Inline()
    plotly.io.renderers.default = "raybrew"
