"""raybrew capture."""

from __future__ import annotations

from typing import Annotated

import typer

from raybrew.cli.options import AsJson, ExperimentFile, Overrides, TaskChoice, TeacherChoice
from raybrew.cli.running import load_to_run
from raybrew.cli.terminal import make_reporter, print_json, results

__all__ = ["capture"]


def capture(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    task: TaskChoice = None,
    teacher: TeacherChoice = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all that is stored already and compute anew what is damaged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the teacher once over all training rows and keep its outputs for every student to come.

    What the store has already is not computed again.
    """
    config = load_to_run(experiment, overrides)

    from raybrew.store.listing import describe
    from raybrew.verbs.capture import capture_all

    found = capture_all(config, task=task, teacher=teacher, reporter=make_reporter(), verify=verify)
    facts = {name: describe(store) for name, store in found.items()}
    if as_json:
        print_json(facts if len(facts) > 1 else next(iter(facts.values())))
        return
    console = results()
    for name, each in facts.items():
        console.print(f"{f'{name}: ' if name else ''}store {each['path']}", soft_wrap=True, markup=False)
        console.print(
            f"{each['rows']} rows, {each['bytes'] / 2**20:.1f} MiB: {', '.join(each['signals'])}", markup=False
        )
