"""raybrew doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.options import Address, AsJson, Overrides
from raybrew.cli.terminal import make_reporter, print_json, results
from raybrew.config.loading import load_experiment

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    experiment: Annotated[
        Path | None,
        typer.Argument(
            metavar="[EXPERIMENT]", help="Experiment file (YAML), for its folders and needs.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
    as_json: AsJson = False,
) -> int:
    """Look at versions, GPU, Ray, storage, hub, W&B, disks and clocks; say what is wrong and what helps.

    A cluster's nodes are asked one by one whether they see the same storage. Exit code 4 if there is a problem.
    """
    config = load_experiment(experiment, overrides or ()) if experiment is not None else None

    from raybrew.diagnosis.run import doctor as verb

    found = verb(config, address=address, reporter=make_reporter())
    if as_json:
        print_json(found.plain())
    else:
        console = results()
        for each in found.findings:
            console.print(f"{each.status:8}", style=_STYLES[each.status], end="")
            console.print(f"{each.topic}: {each.message}", markup=False, soft_wrap=True)
            if each.remedy:
                console.print(f"        -> {each.remedy}", style="dim", markup=False, soft_wrap=True)
        counts = ((len(found.problems), "problem"), (len(found.warnings), "warning"))
        console.print(", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts), markup=False)
    return 4 if found.problems else 0
