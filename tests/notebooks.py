"""Running the notebooks of `experiments/notebooks` with other parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat

__all__ = ["NOTEBOOKS", "execute", "noise_of", "outputs_of", "texts_of"]

NOTEBOOKS = Path(__file__).resolve().parents[1] / "experiments" / "notebooks"


def execute(name: str, folder: Path, parameters: str, timeout: int = 120) -> Any:
    """The executed notebook `name`, run in `folder`; `parameters` are added to its cell of that tag."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    given = {line.partition(" = ")[0] for line in parameters.splitlines()}
    known = {line.partition(" = ")[0] for line in cell.source.splitlines()}
    assert all(given_name in " ".join(known) for given_name in given), f"{name} has no parameters {given - known}"
    cell.source += f"\n{parameters}"
    nbclient.NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def outputs_of(notebook: Any, part: str) -> list[Any]:
    """Outputs of the only code cell whose source has `part`."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and part in cell.source]
    return list(cell.outputs)


def noise_of(notebook: Any) -> list[str]:
    """What stands in red below the cells: warnings and log lines."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["text"] for output in outputs if output["output_type"] == "stream" and output["name"] == "stderr"]


def texts_of(outputs: list[Any], kind: str = "text/html") -> str:
    """What the outputs show, in that form; what was printed as well for plain text."""
    found = [str(output["data"].get(kind, "")) for output in outputs if "data" in output]
    if kind == "text/plain":
        found += [output["text"] for output in outputs if output["output_type"] == "stream"]
    return "\n".join(found)
