"""raybrew plan."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from raybrew.cli.options import AsJson, ExperimentFile, Overrides
from raybrew.cli.terminal import make_reporter, print_json, results
from raybrew.config.loading import load_experiment

if TYPE_CHECKING:
    from raybrew.verbs.plan import Plan, StorePlan

__all__ = ["plan"]


def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Trainings that read the store. Default: those of `sweep`, or one."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option("--price-per-hour", min=0, help="Price of an hour of one device.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what capture and training will take, before anything runs: rows, bytes, time, price, store or live teacher.

    Measures the teacher and the student for a few seconds on this machine. Writes nothing.
    """
    config = load_experiment(experiment, overrides or ())

    from raybrew.verbs.plan import plan as verb

    found = verb(config, trials=trials, price_per_hour=price_per_hour, reporter=make_reporter())
    if as_json:
        print_json(found.plain())
    else:
        _print(found)


def _print(found: Plan) -> None:
    from rich.table import Table

    from raybrew.verbs.amounts import Sizes

    console = results()
    for store in found.stores:
        console.print(_store_table(store), markup=False)
    table = Table("", "", title=f"training {found.name}", title_justify="left", title_style="bold", show_header=False)
    training = found.training
    devices = {store.device for store in found.stores} | ({training.device} if training is not None else set())
    device = "GPU" if "cuda" in devices else "CPU"
    if training is not None:
        table.add_row(
            f"{training.unit_name}, steps",
            f"{training.rows} {training.unit_name}, {training.steps} steps in {training.epochs:g} epochs",
        )
        table.add_row("a step", f"{1000 * training.step_seconds:.1f} ms (student alone, {device})")
        table.add_row("an epoch", f"{_time(training.epoch_seconds)} (workers: {training.workers})")
        table.add_row("one training", _time(training.worker_seconds / training.workers))
        if found.stores:
            table.add_row("reads", f"{Sizes.text(round(found.read_rate))} a second from a store")
    for name, seconds in (("with a store", found.stored_seconds), ("teacher live", found.live_seconds)):
        if found.stores and not (found.live_because and name == "with a store"):
            price = ""
            if found.price_per_hour is not None:
                price = f", price {seconds / 3600 * found.price_per_hour:.2f}"
            table.add_row(
                f"{found.trials} training{'s' if found.trials > 1 else ''}, {name}",
                f"{_time(seconds)} of one {device} worker ({seconds / 3600:.2f} {device} hours{price})",
            )
    if found.stores and not found.live_because:
        table.add_row("break-even", f"1 pass over the rows; here are {found.passes:g}")
    console.print(table, markup=False)
    for problem in found.problems:
        console.print(f"problem: {problem}", soft_wrap=True, markup=False)
    console.print(f"verdict: {found.verdict}", soft_wrap=True, markup=False)


def _store_table(store: StorePlan) -> object:
    from rich.table import Table

    from raybrew.verbs.amounts import Sizes

    title = f"store of {store.label}" if store.bytes else f"live teacher of {store.label}"
    table = Table("", "", title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_row("teacher", store.teacher)
    table.add_row(
        f"{store.unit_name}, tokens",
        f"{store.rows} {store.unit_name}, {store.tokens} tokens, at most {store.longest} in one",
    )
    if not store.bytes:
        speed = f"{store.tokens_per_second:.0f} tokens/s, {store.device}"
        table.add_row("a pass", f"{_time(store.actor_seconds)} ({speed})")
        return table
    for name, count in store.bytes.items():
        table.add_row(name, Sizes.text(count))
    room = "" if store.free_bytes is None else f", {Sizes.text(store.free_bytes)} free"
    table.add_row("in all", f"{Sizes.text(store.total_bytes)} in {store.shards} shards{room}")
    table.add_row("place", store.location)
    table.add_row(
        "capture",
        f"{_time(store.actor_seconds)} by one actor ({store.tokens_per_second:.0f} tokens/s, {store.device}), "
        f"{_time(store.seconds)} by {store.actors}, {Sizes.text(round(store.write_rate))} a second",
    )
    return table


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))
