"""Notebooks run from beginning to end, show what they promise, and are kept without outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebooks import NOTEBOOKS, execute, noise_of, outputs_of, texts_of

from raybrew.reports.notebook import html_table
from unit.sweep_helpers import base, conductor_of, drive

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.iterdir()))
def test_notebooks_are_kept_without_outputs(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code) == 1
    assert notebook.metadata.kernelspec.name == "python3"


def test_local_tour(tmp_path: Path) -> None:
    quick = ["teacher.finetune.epochs=1", "train.epochs=1"]
    quick += ["train.threads=1", "teacher.finetune.threads=1"]
    ran = execute(
        "local_tour",
        tmp_path,
        f"labelled, unlabelled, evaluation = 300, 300, 100\noverrides = {quick}",
    )
    assert "accuracy" in texts_of(outputs_of(ran, "raybrew.finetune("))
    assert "store" in texts_of(outputs_of(ran, "raybrew.plan("))
    student = texts_of(outputs_of(ran, "student = raybrew.distill("))
    assert "<td style='text-align:right;white-space:nowrap'>distilled</td>" in student
    assert noise_of(ran) == []
    assert "hidden.02" in texts_of(outputs_of(ran, "store = raybrew.capture"))
    assert "700 rows" in texts_of(outputs_of(ran, "px.histogram"))
    assert "distilled" in texts_of(outputs_of(ran, "compare(["))
    assert "model.safetensors" in texts_of(outputs_of(ran, "raybrew.export("))
    assert "'1':" in texts_of(outputs_of(ran, "load_student("))
    assert (tmp_path / "tour" / "export" / "README.md").is_file()


def test_sweep_analysis(tmp_path: Path) -> None:
    space = {"distill.temperature": [1, 2, 4], "student.shape": [{"layers": 2}, {"layers": 3}]}
    settings: dict[str, Any] = {"space": space, "search": "grid", "seeds": 1}

    def accuracy(job: Any) -> float | str:
        layers = job.experiment.student.model_dump()["shape"]["layers"]
        if job.experiment.distill.temperature == 2 and layers == 2:
            return "out of memory"
        return 0.7 + 0.05 * layers + 0.01 * job.experiment.distill.temperature

    drive(conductor_of(base(tmp_path, settings)), accuracy)
    ran = execute("sweep_analysis", tmp_path, f"folder = {str(tmp_path / 'reviews')!r}")
    assert "0.89" in texts_of(outputs_of(ran, "sweep.best()"), "text/plain") + texts_of(
        outputs_of(ran, "gain ="), "text/plain"
    )
    assert "out of memory" in texts_of(outputs_of(ran, "sweep.failed"), "text/plain")
    assert texts_of(outputs_of(ran, "sweep.dataframe()")).count("<tr") > 6
    assert "num_trials" in texts_of(outputs_of(ran, "sweep.cost()"), "text/plain")
    assert noise_of(ran) == []
    plots = texts_of([output for cell in ran.cells if cell.cell_type == "code" for output in cell.outputs])
    assert plots.count("Plotly.newPlot") > 1
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=", plots) == []  # the page needs no network


def test_tables_escape_what_they_show() -> None:
    shown = html_table("<b>", [["<i>", "&", "1"]], ["a<", "b", "c"], ["<script>"])
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
