"""A plan in words: titled tables of two columns, for terminals and notebooks alike."""

from __future__ import annotations

import datetime
import html
from typing import TYPE_CHECKING

from raybrew.verbs.amounts import Sizes

if TYPE_CHECKING:
    from raybrew.verbs.planned import FinetunePlan, Plan, StorePlan, StudentPlan, TrainingPlan

__all__ = ["plan_html", "plan_tables"]


def plan_tables(plan: Plan) -> list[tuple[str, list[tuple[str, str]]]]:
    """Title and rows of each teacher that is to be trained, of each store, and of the training."""
    tables = [*map(_finetune, plan.finetunes), *map(_store, plan.stores)]
    training = plan.training
    trained = [each.training for each in plan.finetunes] + ([training] if training is not None else [])
    devices = {store.device for store in plan.stores} | {each.device for each in trained}
    device = "GPU" if "cuda" in devices else "CPU"
    rows: list[tuple[str, str]] = []
    if plan.student is not None:
        rows += _student(plan.student)
    if training is not None:
        rows += [
            _amount(training),
            ("a step", f"{1000 * training.step_seconds:.1f} ms (student alone, {device})"),
            ("an epoch", f"{_time(training.epoch_seconds)} (workers: {training.workers})"),
            ("one training", _time(training.worker_seconds / training.workers)),
        ]
        if plan.stores:
            rows.append(("reads", f"{Sizes.text(round(plan.read_rate))} a second from a store"))
    finetune = "finetune and " if plan.finetunes else ""
    for name, seconds in (("with a store", plan.stored_seconds), ("teacher live", plan.live_seconds)):
        if plan.stores and not (plan.live_because and name == "with a store"):
            price = ""
            if plan.price_per_hour is not None:
                price = f", price {seconds / 3600 * plan.price_per_hour:.2f}"
            rows.append(
                (
                    f"{finetune}{_trainings(plan)}, {name}",
                    f"{_time(seconds)} of one {device} worker ({seconds / 3600:.2f} {device} hours{price})",
                )
            )
    if plan.stores and not plan.live_because:
        rows.append(("break-even", f"1 pass over the rows; here are {round(plan.passes, 2):g}"))
    return [*tables, (f"training {plan.name}", rows)]


def _trainings(plan: Plan) -> str:
    count = f"{plan.trials} training{'s' if plan.trials > 1 else ''}"
    return f"{count} and {plan.controls} control{'s' if plan.controls > 1 else ''}" if plan.controls else count


def _amount(training: TrainingPlan) -> tuple[str, str]:
    epochs = f"{round(training.epochs, 2):g} epoch{'' if training.epochs == 1 else 's'}"
    return (
        f"{training.unit_name}, steps",
        f"{training.rows} {training.unit_name}, {training.steps} steps in {epochs}",
    )


def _finetune(plan: FinetunePlan) -> tuple[str, list[tuple[str, str]]]:
    training = plan.training
    device = "GPU" if training.device == "cuda" else "CPU"
    rows = [
        ("teacher", plan.teacher),
        _amount(training),
        ("a step", f"{1000 * training.step_seconds:.1f} ms ({device})"),
        ("in all", f"{_time(training.worker_seconds / training.workers)} (workers: {training.workers})"),
    ]
    return f"finetune of {plan.label}", rows


def plan_html(plan: Plan) -> str:
    """Tables, problems and verdict, for notebooks."""
    parts = []
    for title, rows in plan_tables(plan):
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        parts.append(f"<h4>{html.escape(title)}</h4><table>{cells}</table>")
    parts += [f"<p>problem: {html.escape(problem)}</p>" for problem in plan.problems]
    return "".join([*parts, f"<p><b>{html.escape(plan.verdict)}</b></p>"])


def _store(store: StorePlan) -> tuple[str, list[tuple[str, str]]]:
    rows = [
        ("teacher", store.teacher),
        (
            f"{store.unit_name}, tokens",
            f"{store.rows} {store.unit_name}, {store.tokens} tokens, at most {store.longest} in one",
        ),
    ]
    if not store.bytes:
        speed = f"{store.tokens_per_second:.0f} tokens/s, {store.device}"
        return f"live teacher of {store.label}", [*rows, ("a pass", f"{_time(store.actor_seconds)} ({speed})")]
    room = "" if store.free_bytes is None else f", {Sizes.text(store.free_bytes)} free"
    rows += [(name, Sizes.text(count)) for name, count in store.bytes.items()]
    rows += [
        ("in all", f"{Sizes.text(store.total_bytes)} in {store.shards} shard{'' if store.shards == 1 else 's'}{room}"),
        ("place", store.location),
        (
            "capture",
            f"{_time(store.actor_seconds)} by one actor ({store.tokens_per_second:.0f} tokens/s, {store.device}), "
            f"{_time(store.seconds)} by {store.actors}, {Sizes.text(round(store.write_rate))} a second",
        ),
    ]
    return f"store of {store.label}", rows


def _student(student: StudentPlan) -> list[tuple[str, str]]:
    rows = [("student", f"{student.parameters:,} parameters, {Sizes.text(student.weight_bytes)} in float32")]
    if student.vocabulary_before is not None:
        pieces, saved = f"{student.vocabulary:,} of {student.vocabulary_before:,} pieces", student.parameters_saved
        words = f"{pieces}: {saved:,} parameters saved"
        if not student.vocabulary_is_whole:
            words += (
                f", by a sample of {student.vocabulary_rows:,} of {student.vocabulary_rows_in_all:,} rows; "
                "all rows need more pieces"
            )
        rows.append(("vocabulary", words))
    held = f"{Sizes.text(student.training_bytes)} of weights, gradients and optimizer state, activations aside"
    return [*rows, ("its training holds", held)]


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))
