"""raybrew inspect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from raybrew.cli.options import AsJson, Overrides, TaskChoice
from raybrew.cli.terminal import make_reporter, print_json, results, write_line

if TYPE_CHECKING:
    from rich.table import Table

    from raybrew.models.inspection import ParameterNode
    from raybrew.verbs.inspect import Inspected

__all__ = ["inspect"]


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Experiment file, whose student and teachers are set side by side, or a model folder or hub name.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    *,
    level: Annotated[int, typer.Option("--level", min=0, help="Levels of modules to show.")] = 3,
    length: Annotated[
        int | None,
        typer.Option("--length", help="Tokens of a row. Default: 128, or as many as fit.", show_default=False),
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Measure latency at batch 1 and 32.")] = True,
    device: Annotated[str, typer.Option("--device", help="Where latency is measured: auto, cpu or cuda.")] = "auto",
    task: TaskChoice = None,
    as_json: AsJson = False,
) -> None:
    """Show parameters per module, MB, FLOPs per token and latency of student and teacher, or of any model.

    Reads configs only and trains nothing; a student that is not trained yet is built from its shape.
    """
    from raybrew.verbs.inspect import inspect as verb

    found = verb(
        target,
        overrides or (),
        task=task,
        length=length,
        latency=latency,
        device=device,
        reporter=make_reporter(),
    )
    if as_json:
        print_json({name: one.plain(level) for name, one in found.items()})
        return
    _print_facts(found)
    _print_modules(found, level)
    tokens = next(iter(found.values())).flops.length
    write_line(
        f"FLOPs: two for each multiply-add of matrix products in a pass over {tokens} tokens, divided by {tokens}; "
        "attention is that of all pairs of tokens."
    )
    if latency:
        write_line(
            f"Latency: median on {next(iter(found.values())).device} with random weights in float32, {tokens} tokens a "
            "row, after a warm-up; several models are timed in turn."
        )


def _print_facts(found: Mapping[str, Inspected]) -> None:
    from rich.table import Table

    names = list(found)
    compared = len(names) > 1
    table = Table("", *names, *([f"{names[0]} / {names[1]}"] if compared else []))
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [("parameters", [one.facts["parameters"] for one in found.values()], "{:,}")]
    rows.append(("MB, float32", [one.facts["megabytes"] for one in found.values()], "{:,.2f}"))
    rows.append(("MFLOPs per token", [one.flops.total / 1e6 for one in found.values()], "{:,.3f}"))
    rows.append(("  weights", [one.flops.weights / 1e6 for one in found.values()], "{:,.3f}"))
    rows.append(("  attention", [one.flops.products / 1e6 for one in found.values()], "{:,.3f}"))
    for batch in next(iter(found.values())).latency_ms:
        title = f"ms per example, {batch.replace('_', ' ')}"
        rows.append((title, [one.latency_ms[batch] for one in found.values()], "{:,.3f}"))
    console = results()
    for name, one in found.items():
        console.print(f"{name}: {one.facts['description']} ({one.source})", markup=False, soft_wrap=True)
    for title, values, form in rows:
        ratio = [f"{100 * values[0] / values[1]:.1f} %" if values[1] else ""] if compared else []
        table.add_row(title, *(form.format(value) for value in values), *ratio)
    console.print(table, markup=False)


def _print_modules(found: Mapping[str, Inspected], level: int) -> None:
    """One row per module of any of the models; on a terminal that is too narrow for that, one table for each model."""
    console = results()
    table, marked = _modules_table(found, level)
    unlimited = console.options.update(max_width=10_000)
    if len(found) > 1 and console.measure(table, options=unlimited).maximum > console.width:
        for name, one in found.items():
            console.print(_modules_table({name: one}, level)[0], markup=False)
    else:
        console.print(table, markup=False)
    if marked:
        write_line("* and tensors that are shared with another module, where they are counted")


def _modules_table(found: Mapping[str, Inspected], level: int) -> tuple[Table, bool]:
    """Modules of the models, each with parameters, share and MB; whether any of their tensors are marked as shared."""
    from rich.table import Table

    table = Table()
    table.add_column("module", no_wrap=True)
    for name in found:
        for title in (f"{name}: parameters", "share", "MB"):
            table.add_column(title, justify="right", no_wrap=True)
    roots = [one.modules for one in found.values()]
    marked = False

    def add(title: str, nodes: list[ParameterNode | None], depth: int) -> None:
        nonlocal marked
        cells = []
        for node, root in zip(nodes, roots, strict=True):
            if node is None:
                cells += ["", "", ""]
                continue
            mark = " *" if node.shared else ""
            marked |= bool(mark)
            share = 100 * node.parameters / root.parameters if root.parameters else 0.0
            cells += [f"{node.parameters:,}{mark}", f"{share:.2f} %", f"{node.bytes / 1e6:.2f}"]
        table.add_row("  " * depth + title, *cells)
        if depth == level:
            return
        for name in dict.fromkeys(name for node in nodes if node is not None for name in node.children):
            add(name, [None if node is None else node.children.get(name) for node in nodes], depth + 1)

    add("all", list(roots), 0)
    return table, marked
