"""raybrew capture."""

from __future__ import annotations

from typing import Annotated

import typer

from raybrew.cli.options import AsJson, ExperimentFile, Overrides
from raybrew.cli.terminal import make_reporter, print_json, results
from raybrew.config.loading import load_experiment

__all__ = ["capture"]


def capture(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all that is stored already and compute anew what is damaged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the teacher once over all training rows and keep its outputs for every student to come.

    What the store has already is not computed again.
    """
    config = load_experiment(experiment, overrides or ())

    from raybrew.store.reader import describe
    from raybrew.verbs.capture import capture as verb

    store = verb(config, reporter=make_reporter(), verify=verify)
    facts = describe(store)
    if as_json:
        print_json(facts)
        return
    console = results()
    console.print(f"store {facts['path']}", soft_wrap=True, markup=False)
    console.print(
        f"{facts['rows']} rows, {facts['bytes'] / 2**20:.1f} MiB: {', '.join(facts['signals'])}", markup=False
    )
