"""raybrew export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raybrew.cli.options import AsJson
from raybrew.cli.terminal import make_reporter, print_json, results, write_line
from raybrew.config.loading import load_experiment

if TYPE_CHECKING:
    from raybrew.verbs.export import Export

__all__ = ["export"]


Source = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|SWEEP|FOLDER", help="A run's folder, a sweep's (its best), or a model's.", show_default=False
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        help="hf, onnx, onnx-int8, int8 (torchao), int8-weights; may be given several times. Default: hf.",
        show_default=False,
    ),
]
OneTask = Annotated[str | None, typer.Option("--task", help="One of several tasks, by name.", show_default=False)]
Judge = Annotated[
    Path | None,
    typer.Option(
        "--experiment",
        help="Experiment file whose data.eval measures quality. Default: the run's own.",
        show_default=False,
    ),
]
Repository = Annotated[
    str | None,
    typer.Option("--push", metavar="OWNER/NAME", help="Upload to the Hugging Face hub.", show_default=False),
]


def export(
    source: Source,
    *,
    to: Annotated[Path, typer.Option("--to", help="Folder to export to.", show_default=False)],
    formats: Formats = None,
    task: OneTask = None,
    experiment: Judge = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure the quality of ONNX and int8 on data.eval.")
    ] = True,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX operators.", show_default="20")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
    push: Repository = None,
    public: Annotated[bool, typer.Option("--public", help="Make the new repository public.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a student with a model card: a Hugging Face folder, ONNX checked against torch, int8 with its quality."""
    settings = load_experiment(experiment) if experiment is not None else None

    from raybrew.exports.onnx_file import OPSET
    from raybrew.verbs.export import export as verb

    found = verb(
        source,
        to,
        formats=formats or ("hf",),
        task=task,
        experiment=settings,
        evaluate=evaluate,
        opset=opset or OPSET,
        force=force,
        push=push,
        public=public,
        reporter=make_reporter(),
    )
    if as_json:
        print_json(found.facts | {"path": str(found.path), "url": found.url})
    else:
        _print(found)


def _print(found: Export) -> None:
    from rich.table import Table

    from raybrew.exports.card import format_rows

    header, *rows = format_rows(found.facts)
    table = Table(*header)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    results().print(table)
    write_line(f"export: {found.path.absolute()}")
