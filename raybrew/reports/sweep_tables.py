"""A sweep as tables: the leaderboard by the one rule for "best", all trials and rounds. And its recommended student."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config.controls import is_searched
from raybrew.config.judge import LOSS
from raybrew.config.values import show_value_of
from raybrew.errors import RunError
from raybrew.records.ranking import BEST, Standing, best_mark, recommended, standings
from raybrew.records.runs import RunRecord, load_run
from raybrew.records.sections import number
from raybrew.records.sweeps import CANDIDATE, CONTROL, KD_ONLY, SweepRecord, cost_of
from raybrew.records.trials import canonical
from raybrew.reports.compare import LOSSES_DIFFER, ShownComparison, compare, ordered
from raybrew.reports.comparison import Comparison
from raybrew.reports.numbers import count_of, metric_scale, metric_title, show_seconds
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import rows_of, value_on
from raybrew.training.run_folder import RunFolder

__all__ = [
    "best_run",
    "leaderboard",
    "round_cells",
    "round_heads",
    "round_rows",
    "rows_by_run",
    "rule_of",
    "student_of_sweep",
    "trial_rows",
    "trials_csv",
]


def leaderboard(record: SweepRecord, runs: Sequence[RunRecord] | None = None) -> ShownComparison:
    """The finished trials of a sweep compared, and its best by the rule. What was stopped or failed is left out.

    Of configurations that were run again with more seeds only the further seeds count; notes tell the others. A control
    that was run again stands for those of its shape that were not.
    """
    counted = {
        trial.run
        for role in (CANDIDATE, CONTROL, KD_ONLY)
        for standing in _shown(record, role)
        for trial in standing.counted
    }
    counted |= {trial.run for trial in record.trials if trial.counts and trial.value is None}
    every = record.runs() if runs is None else list(runs)
    found = [run for run in every if run.folder.name in counted]
    roles = {trial.run: trial.role for trial in record.trials}
    comparison = compare(found, also_tried=len(stopped_configurations(record)))
    rows = [_named(row, roles) for row in comparison.rows]
    by_run = {run.folder.name: row for row in reversed(rows) for run in row.runs}
    chosen = recommended(record)
    best = None if chosen is None else by_run.get(chosen.counted[0].run)
    rows = ordered(rows, comparison.metric, best)
    # A sweep starts only if the losses of its trials compare.
    told = [note for note in comparison.notes if note != LOSSES_DIFFER]
    return dataclasses.replace(
        comparison,
        rows=tuple(rows),
        best=best,
        notes=(*told, *_latency_notes(record, found), *_left_out(record)),
        candidates=last_candidates(record, rows),
        cost=cost_text(record),
        rule=rule_of(record.metric, bool(record.finalists())),
        shipped=next((run for run in every if chosen is not None and run.folder.name == chosen.run), None),
    )


def stopped_configurations(record: SweepRecord) -> set[str]:
    """Configurations that the scheduler stopped in each of their trials: they were judged on the same rows as well."""
    tried = [trial for trial in record.trials if trial.role == CANDIDATE]
    done = {canonical(trial.values) for trial in tried if trial.status == "done"}
    return {canonical(trial.values) for trial in tried if trial.status == "stopped"} - done


def last_candidates(record: SweepRecord, rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows of the configurations that the last choice was among: those run again with more seeds, if any were."""
    runs = record.finalists() or {trial.run for trial in record.trials if trial.role == CANDIDATE}
    return tuple(row for row in rows if row.done and row.quality and any(run.folder.name in runs for run in row.runs))


def cost_text(record: SweepRecord) -> str:
    """What the sweep took, in a few words."""
    cost = cost_of(record)
    configurations = {canonical(trial.values) for trial in record.trials if trial.role == CANDIDATE}
    parts = [
        f"the sweep took {show_seconds(cost.wall_seconds)} for {count_of(len(configurations), 'configuration')} "
        f"({count_of(cost.num_trials, 'trial')}, with controls and seeds)",
        f"{cost.gpu_hours:.2f} GPU-hours" if cost.gpu_hours else "",
        f"cost {cost.money:.2f}" if cost.money is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _shown(record: SweepRecord, role: str) -> list[Standing]:
    """Configurations of the leaderboard; of controls that differ in how they are optimised those that were chosen."""
    found = standings(record.trials, role, record.metric)
    if role == CANDIDATE:
        return found
    again = {_student_of(standing) for standing in found if standing.further}
    return [standing for standing in found if standing.further or _student_of(standing) not in again]


def _student_of(control: Standing) -> str:
    return canonical({key: value for key, value in control.values.items() if not is_searched(key)})


def rows_by_run(record: SweepRecord, comparison: Comparison) -> dict[str, Row]:
    """The row of each run of a leaderboard, also of runs whose value chose their configuration and does not count."""
    found = {run.folder.name: row for row in reversed(comparison.rows) for run in row.runs}
    for role in (CANDIDATE, CONTROL, KD_ONLY):
        for standing in standings(record.trials, role, record.metric):
            row = found.get(standing.counted[0].run)
            if row is not None:
                found.update(dict.fromkeys(standing.runs, row))
    return found


def rule_of(metric: str, finalists: bool) -> str:
    """The one rule by which a sweep's best is chosen, in words."""
    best = "lowest evaluation loss" if metric == LOSS else f"highest {metric_title(metric).removesuffix(' %')}"
    again = (
        " Only configurations run again with more seeds take part, by these further seeds: the value that chose them "
        "does not count."
    )
    return (
        f"Best: the {best} on data.eval of each run's best checkpoint, mean over seeds; ties go to fewer parameters, "
        f"then to the configuration tried first.{again if finalists else ''} The shipped student is its best seed on "
        "data.eval."
    )


def best_run(record: SweepRecord) -> str | None:
    """The run whose student the sweep recommends."""
    chosen = recommended(record)
    return None if chosen is None else chosen.run


def _left_out(record: SweepRecord) -> list[str]:
    """The values by which configurations were chosen to be run again."""
    scale = metric_scale(record.metric)
    told = [
        f"{trial.label} {scale * trial.value:.2f} (seed {trial.seed})"
        for role in (CANDIDATE, CONTROL, KD_ONLY)
        for standing in standings(record.trials, role, record.metric)
        if standing.further
        for trial in standing.chosen_by
        if trial.value is not None
    ]
    if not told:
        return []
    return [f"Left out of the means, as these values chose what was run again with more seeds: {'; '.join(told)}."]


def _latency_notes(record: SweepRecord, runs: Sequence[RunRecord]) -> list[str]:
    """Whether times per example can be relied on: trials that ran beside one another slowed each other down."""
    beside = any((session.slots or 1) > 1 for session in record.sessions)
    if not beside or all(run.latency is None or run.latency.alone for run in runs):
        return []
    return ["Times per example were measured while other trials ran on the same machine: do not rely on them."]


def _named(row: Row, roles: dict[str, str]) -> Row:
    found = {roles.get(run.folder.name) for run in row.runs}
    if found == {KD_ONLY}:
        # Of several shapes: what tells them apart stays.
        return dataclasses.replace(row, variant=", ".join(filter(None, ["KD only, without labels", row.variant])))
    if found == {CONTROL}:
        return dataclasses.replace(row, variant=row.variant or "labels only")
    return row


def trial_rows(record: SweepRecord, runs: Iterable[RunRecord] = ()) -> list[dict[str, Any]]:
    """One plain mapping per trial: what was tried, how it ended, what its run measured, and how to repeat it.

    `runs` are those that were read already.
    """
    loaded = {run.folder.resolve(): run for run in runs}
    rows = []
    for trial in record.trials:
        folder = record.folder.parent / trial.run
        run = loaded.get(folder.resolve())
        if run is None and (folder / "config.yaml").is_file():
            run = load_run(folder)
        times = run.latency.student if run is not None and run.latency is not None else {}
        best = run.best if run is not None else None
        rows.append(
            {
                "trial": trial.number,
                "role": trial.role,
                "rerun": trial.rerun,
                **{key: trial.show(key) if key in trial.values else None for key in record.space},
                "seed": trial.seed,
                "status": "interrupted" if trial.status == "running" and record.closed is not None else trial.status,
                "metric": record.metric,
                "value": best.value if best is not None else None,
                "eval_rows": run.eval_rows if run is not None else None,
                "test": value_on(run, "test", record.metric) if run is not None else None,
                "test_rows": rows_of(run, "test") if run is not None else None,
                "share_of_steps": round(trial.share, 4),
                "parameters": number(run.facts.student.parameters) if run is not None else None,
                "megabytes": run.facts.student.megabytes if run is not None else None,
                "ms_batch_1": times.get("batch_1"),
                "ms_batch_32": times.get("batch_32"),
                "seconds": trial.seconds,
                "overhead_seconds": trial.overhead,
                "lost": trial.lost,
                "error": trial.error,
                "run": trial.run,
                "command": run.command if run is not None else None,
            }
        )
    return rows


def trials_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `trial_rows` as CSV with a head."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def student_of_sweep(sweep: Path, run: str) -> Path:
    """The folder of the student of `run`, which the sweep in the folder `sweep` recommends.

    That is `best` if it holds this run's student, else the run's own. RunError if neither is there.
    """
    mark = best_mark(sweep / BEST)
    if mark is not None and mark["run"] == run:
        return sweep / BEST
    folder = RunFolder(sweep.parent / run, run)
    if folder.has_student:
        return folder.student
    raise RunError(
        f"{sweep} recommends a student that is not there: {folder.why_no_student()}, and so does the command of the "
        "sweep, which then writes it to `best`"
    )


def round_rows(record: SweepRecord) -> list[dict[str, Any]]:
    """One plain mapping per member and round: its trial, its metric there, and what was decided."""
    trials = {trial.run: trial for trial in record.trials}
    rows = []
    for line in record.rounds:
        moves = {move.of: move for move in line.moves}
        for run, value in sorted(line.scores.items(), key=lambda item: -(-1e9 if item[1] is None else item[1])):
            trial, move = trials[run], moves.get(run)
            source = None if move is None else trials[move.source]
            after = None if move is None else trials.get(move.run)
            rows.append(
                {
                    "round": line.number,
                    "member": trial.member,
                    "trial": trial.number,
                    "value": value,
                    "from_trial": source.number if source is not None else None,
                    "new_trial": after.number if after is not None else None,
                    "new_values": dict(move.new) if move is not None else None,
                }
            )
    return rows


def round_cells(record: SweepRecord) -> list[list[str]]:
    """`round_rows` as the page shows them."""
    scale = metric_scale(record.metric)
    cells = []
    for row in round_rows(record):
        if row["new_values"] is None:
            decided = "goes on"
        else:
            new = ", ".join(f"{key.rsplit('.', 1)[-1]}={show_value_of(v)}" for key, v in row["new_values"].items())
            decided = f"goes on from trial {row['from_trial']} with {new}, as trial {row['new_trial']}"
        shown = "failed" if row["value"] is None else f"{row['value'] * scale:.2f}"
        cells.append([str(row["round"]), str(row["member"]), str(row["trial"]), shown, decided])
    return cells


def round_heads(record: SweepRecord) -> list[str]:
    """Heads of `round_cells`."""
    return ["round", "member", "trial", metric_title(record.metric), "then"]
