"""One rule for what a sweep keeps, exports, shows and recommends; a student that is gone is never taken for another."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raybrew.errors import RunError
from raybrew.pipeline.export_source import find_source
from raybrew.pipeline.resolve import resolve
from raybrew.records.ranking import best_mark, recommended
from raybrew.records.sweeps import CANDIDATE, CONTROL, load_sweep
from raybrew.reports.sweep_tables import best_run, leaderboard, rows_by_run, trial_rows
from raybrew.sweeps import run as finish
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import Job
from raybrew.sweeps.progress import quiet_or
from raybrew.sweeps.result import Sweep
from raybrew.sweeps.run import finish_sweep
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.evaluate import pick_model
from unit.sweep_helpers import base, conductor_of, drive, end, leave_student

TEMPERATURES = [1, 2, 4, 8, 16]
FIRST = {1: 0.900, 2: 0.890, 4: 0.888, 8: 0.887, 16: 0.80}


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that were scored on `data.test`, in order; nothing is computed."""
    found: list[str] = []
    module: Any = types.ModuleType("raybrew.runs.scoring")
    module.score_run = lambda folder, reporter: found.append(folder.name)
    monkeypatch.setitem(sys.modules, "raybrew.runs.scoring", module)
    return found


def sweep(**changes: Any) -> dict[str, Any]:
    return {"space": {"distill.temperature": TEMPERATURES}, "search": "grid", "controls": False, **changes}


def lucky(job: Job) -> float:
    """The first seed of each is good; further ones are all alike."""
    return FIRST[job.values.get("distill.temperature", 16)] if job.seed == 0 else 0.86


def session(folder: Path, value_of: Callable[[Job], Any], **changes: Any) -> Conductor:
    """One call of `raybrew sweep`, without Ray and training."""
    conductor = conductor_of(base(folder, sweep(**changes)))

    def trained(job: Job) -> Any:
        run, value = conductor.ledger.folder.parent / job.run, value_of(job)
        if (run / "summary.json").is_file() and isinstance(value, float):  # trained again
            summary = json.loads((run / "summary.json").read_text())
            summary.pop("pruned", None)
            (run / "summary.json").write_text(json.dumps(summary))
            leave_student(run)
        return value

    drive(conductor, trained)
    finish_sweep(conductor, quiet_or(None))
    conductor.ledger.write("close", reason="finished")
    return conductor


def kinds(conductor: Conductor, kind: str) -> list[dict[str, Any]]:
    lines = (conductor.ledger.folder / "ledger.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def of_run(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["run"])


def test_the_recommended_student_is_kept_and_exported(tmp_path: Path) -> None:
    """Its further seeds are worse than the first seeds of all others, by which it would not be kept."""
    conductor = session(tmp_path, lucky, rerun_best={"count": 1, "seeds": 3})
    best = Sweep.load(conductor.ledger.folder).best()
    assert best.values == {"distill.temperature": 1}
    assert (best.value, best.run_value) == (pytest.approx(0.86), 0.9)
    assert best.student == conductor.ledger.folder.resolve() / "best"
    assert of_run(best.student) == best.run.name
    mark = best_mark(best.student)
    assert mark is not None
    assert (mark["run"], mark["values"], mark["metric"]) == (best.run.name, best.values, "accuracy")
    assert (mark["value"], mark["run_value"], mark["seed"]) == (pytest.approx(0.86), 0.9, 0)
    kept = {
        trial.values["distill.temperature"] for trial in conductor.trials.values() if has_student(conductor, trial.run)
    }
    assert kept == {1, 2, 4}, "sweep.keep_students: 3"


def has_student(conductor: Conductor, run: str) -> bool:
    return RunFolder(conductor.ledger.folder.parent / run, run).has_student


def test_all_readers_name_the_same_run(tmp_path: Path) -> None:
    conductor = session(tmp_path, lucky, rerun_best={"count": 2, "seeds": 3}, controls=True)
    record = load_sweep(conductor.ledger.folder)
    chosen = recommended(record)
    table = leaderboard(record)
    assert chosen is not None
    assert table.best is not None
    assert table.best.quality is not None
    assert table.best.quality.mean == pytest.approx(chosen.mean)
    assert set(table.best.seeds) == {1, 2}
    assert rows_by_run(record, table)[chosen.run] is table.best, "also the run whose value does not count"
    assert best_run(record) == chosen.run == Sweep.load(record.folder).best().run.name
    assert find_source(record.folder).run is not None
    assert find_source(record.folder).run.run_id == chosen.run  # type: ignore[union-attr]
    assert find_source(record.folder / "best").run.run_id == chosen.run  # type: ignore[union-attr]
    assert kinds(conductor, "best")[-1]["run"] == chosen.run
    assert sum(row["rerun"] for row in trial_rows(record)) == 2 * 2 + 2, "two configurations and their control"


def test_a_continued_sweep_trains_the_new_best_again(tmp_path: Path) -> None:
    first = {1: 0.80, 2: 0.90, 4: 0.89, 8: 0.70, 16: 0.6}
    one = session(tmp_path, lambda job: first[job.values["distill.temperature"]], keep_students=1)
    (old,) = [run for run in one.trials if has_student(one, run)]
    assert one.trials[old].values == {"distill.temperature": 2}
    removed = next(trial.run for trial in one.trials.values() if trial.values == {"distill.temperature": 4})
    note = RunFolder(one.ledger.folder.parent / removed, removed).summary().pruned  # type: ignore[union-attr]
    assert one.ledger.folder.name in note.by

    def second(job: Job) -> float:
        return {2: 0.60, 4: 0.88}[job.values["distill.temperature"]] if job.seed else first[4]

    two = session(tmp_path, second, keep_students=1, rerun_best={"count": 2, "seeds": 2})
    best = Sweep.load(two.ledger.folder).best()
    assert (best.values, best.value) == ({"distill.temperature": 4}, pytest.approx(0.88))
    assert best.run.name == removed, "of both seeds the first is better on data.eval"
    assert [line["run"] for line in kinds(two, "again")] == [removed]
    assert of_run(best.student) == removed
    assert not has_student(two, old)


@pytest.mark.parametrize(
    "changes", [{"keep_students": 3}, {"rerun_best": {"count": 3, "seeds": 2}, "keep_students": 3}]
)
def test_more_students_to_keep_are_trained_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    session(tmp_path, lucky, keep_students=1)
    conductor = session(tmp_path, lucky, **changes)
    kept = {
        trial.values["distill.temperature"] for trial in conductor.trials.values() if has_student(conductor, trial.run)
    }
    assert kept == {1, 2, 4}
    assert len(kinds(conductor, "again")) == 2
    assert all(trial.status == "done" for trial in conductor.trials.values())


def test_a_recommended_student_that_cannot_be_trained_again_is_an_error(tmp_path: Path) -> None:
    session(tmp_path, lucky, keep_students=1)

    def fails(job: Job) -> float | str:
        if job.seed == 0:
            return "OutOfMemoryError: CUDA out of memory"
        return 0.5 if job.values["distill.temperature"] == 1 else 0.86

    with pytest.raises(RunError, match="CUDA out of memory"):
        session(tmp_path, fails, keep_students=1, rerun_best={"count": 2, "seeds": 2})
    folder = tmp_path / "reviews" / "sweep-x"
    best = Sweep.load(folder).best()
    assert best.values == {"distill.temperature": 2}, "its result stands"
    with pytest.raises(RunError, match="raybrew distill"):
        _ = best.student
    assert "raybrew distill" in best._repr_html_()
    with pytest.raises(RunError, match="raybrew distill"):
        find_source(folder)
    assert best_mark(folder / "best")["values"] == {"distill.temperature": 1}, "that of the first session"  # type: ignore[index]
    conductor = session(tmp_path, lucky, keep_students=1, rerun_best={"count": 2, "seeds": 2})
    assert of_run(Sweep.load(conductor.ledger.folder).best().student) == best.run.name


def test_a_best_folder_without_a_mark_is_nobodys(tmp_path: Path) -> None:
    """Those of older versions may be an earlier best."""
    conductor = session(tmp_path, lucky)
    folder = conductor.ledger.folder
    (folder / "best" / "best.json").unlink()
    best = Sweep.load(folder).best()
    assert best.student == best.run / "student"
    RunFolder(best.run, best.run.name).prune_student("a test")
    with pytest.raises(RunError, match="a test removed"):
        _ = best.student
    again = session(tmp_path, lucky)
    assert [line["run"] for line in kinds(again, "again")] == [best.run.name]
    assert of_run(Sweep.load(folder).best().student) == best.run.name


@pytest.mark.parametrize("at", ["_score", "_export", "_prune"])
def test_killed_while_it_finishes_nothing_is_lost(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finish, at, killed)
        with pytest.raises(KeyboardInterrupt):
            session(tmp_path, lucky, rerun_best={"count": 1, "seeds": 3}, keep_students=1)
    folder = tmp_path / "reviews" / "sweep-x"
    runs = [RunFolder(path, path.name) for path in (tmp_path / "reviews").glob("distill-*")]
    assert all(run.has_student for run in runs)
    assert (best_mark(folder / "best") is not None) == (at == "_prune")
    conductor = session(tmp_path, lucky, rerun_best={"count": 1, "seeds": 3}, keep_students=1)
    assert not kinds(conductor, "again")
    assert of_run(Sweep.load(folder).best().student) == best_run(load_sweep(folder))


def test_test_rows_are_read_once_the_best_is_fixed(tmp_path: Path, scored: list[str]) -> None:
    conductor = session(
        tmp_path,
        lucky,
        rerun_best={"count": 2, "seeds": 2},
        keep_students=1,
        controls=True,
        space={"distill.temperature": [1, 2, 4]},
    )
    trials = conductor.trials
    assert {(trials[run].role, trials[run].values.get("distill.temperature"), trials[run].seed) for run in scored} == {
        *((CANDIDATE, temperature, seed) for temperature in (1, 2) for seed in (0, 1)),
        *((CONTROL, None, seed) for seed in (0, 1)),
    }
    assert len(scored) == 6, "finalists beyond keep_students too, each once"
    kept = {
        trials[run].values["distill.temperature"]
        for run in trials
        if trials[run].role == CANDIDATE and has_student(conductor, run)
    }
    assert kept == {1}
    (line,) = kinds(conductor, "best")
    assert line["run"] == best_run(load_sweep(conductor.ledger.folder))


def test_finalists_stay_when_a_killed_sweep_continues(tmp_path: Path) -> None:
    """Chosen by the seeds of the search alone, whatever their further seeds have come to."""
    changes = {"rerun_best": {"count": 2, "seeds": 3}}
    conductor = conductor_of(base(tmp_path, sweep(**changes)))
    drive(
        conductor,
        lambda job: None if (job.seed, job.values["distill.temperature"]) == (1, 2) else lucky(job) - 0.1 * job.seed,
    )
    again = conductor_of(base(tmp_path, sweep(**changes)))
    drive(again, lambda job: lucky(job) - 0.1 * job.seed)
    rerun = {trial.values["distill.temperature"] for trial in again.trials.values() if trial.rerun}
    assert rerun == {1, 2}


def test_more_seeds_continue_all_configurations(tmp_path: Path) -> None:
    drive(conductor_of(base(tmp_path, sweep(controls=True))), lambda job: 0.8)
    jobs = drive(conductor_of(base(tmp_path, sweep(controls=True, seeds=2))), lambda job: 0.8)
    assert [(job.role, job.seed) for job in jobs] == [(CONTROL, 1)] + [(CANDIDATE, 1)] * 5


def test_what_reads_a_pruned_student_says_who_removed_it(tmp_path: Path) -> None:
    conductor = session(tmp_path, lucky, keep_students=1)
    removed = next(trial.run for trial in conductor.trials.values() if trial.values == {"distill.temperature": 16})
    run = conductor.ledger.folder.parent / removed
    resolved = resolve(conductor.jobs[removed].experiment)
    for read in (
        lambda: find_source(run),
        lambda: pick_model(resolved, resolved.tasks[0], "student"),
    ):
        with pytest.raises(
            RunError, match=r"sweep-x removed .* \(sweep.keep_students\); `raybrew distill .*config.yaml`"
        ):
            read()
    # A training that has begun again is no student yet.
    leave_student(run)
    with pytest.raises(RunError, match="removed"):
        find_source(run / "student")


def test_the_best_control_is_recommended_only_without_students(tmp_path: Path) -> None:
    conductor = conductor_of(base(tmp_path, sweep(controls=True)))
    while (job := conductor.next()) is not None:
        conductor.started(job.run)
        end(conductor, job, 0.7 if job.role == CONTROL else "DivergenceError: no number")
    chosen = recommended(load_sweep(conductor.ledger.folder))
    assert chosen is not None
    assert conductor.trials[chosen.run].role == CONTROL
