"""Sweeps without Ray and without training: a conductor whose trials end as a function says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.records.ledger import Ledger
from raybrew.records.sweeps import CONTROL
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.controls import StepsOf
from raybrew.sweeps.jobs import Job
from raybrew.sweeps.population import States
from raybrew.sweeps.replay import Older, objectives_from
from unit.reports_helpers import make_run

#: A trial's end: its accuracy, or the words of its failure, or None for one that the process did not survive.
Outcome = float | str | None


def base(storage: Path, sweep: dict[str, Any], **sections: Any) -> Experiment:
    """An experiment named `reviews` with that sweep."""
    values: dict[str, Any] = {
        "name": "reviews",
        "data": {"train": "a", "eval": "b"},
        "teacher": {"model": "hub/teacher"},
        "student": {"shape": {"layers": 4, "hidden": 312}},
        "store": {"storage_path": str(storage)},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return build_experiment({**values, "sweep": sweep}, check_files=False)


def conductor_of(
    experiment: Experiment,
    older: tuple[Older, ...] = (),
    steps_of: StepsOf = lambda candidate, control: {},
    states: States | None = None,
) -> Conductor:
    """A conductor on the ledger of that experiment's only sweep."""
    assert experiment.sweep is not None
    folder = Path(experiment.store.storage_path) / experiment.name / "sweep-x"
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder)
    if not ledger.records():
        ledger.write("sweep", name=experiment.name, experiment=experiment.plain(), command="raybrew sweep e.yaml")
    ledger.write("session")
    return Conductor(
        experiment,
        ledger,
        steps_of=steps_of,
        objectives=objectives_from(folder.parent, experiment.sweep.search.objectives),
        older=older,
        states=states,
    )


def leave_student(run: Path) -> None:
    """The student that a finished run leaves; its config.json names the run."""
    (run / "student").mkdir(parents=True, exist_ok=True)
    (run / "student" / "config.json").write_text(json.dumps({"run": run.name}))
    (run / "student" / "model.safetensors").touch()
    if not (run / "summary.json").is_file():
        (run / "summary.json").write_text(json.dumps({"status": "done"}))


def end(conductor: Conductor, job: Job, outcome: Outcome) -> None:
    """The trial ends; a finished one leaves a run folder."""
    if isinstance(outcome, str):
        failure = {"status": "failed", "error": outcome, "error_type": outcome.split(":")[0], "seconds": 1.0}
        conductor.ended(job.run, failure)
        return
    assert outcome is not None
    layers = job.experiment.student.model_dump()["shape"]["layers"]
    folder = conductor.ledger.folder.parent / job.run
    if not folder.exists():
        plain = job.experiment.plain()
        make_run(
            folder.parent.parent,
            "control" if job.role == CONTROL else "student",
            seed=job.seed,
            accuracy=outcome,
            run_id=job.run,
            changes={name: plain[name] for name in ("student", "distill", "train")},
            student={"parameters": 1000 * layers, "megabytes": 0.1 * layers, "description": f"BERT {layers}x312"},
            steps=20,
        )
        leave_student(folder)
    conductor.reported(job.run, 0.5, outcome - 0.1)
    conductor.reported(job.run, 1.0, outcome)
    conductor.ended(job.run, {"status": "done", "value": outcome, "seconds": 10.0, "overhead": 0.5})


def drive(conductor: Conductor, outcome: Callable[[Job], Outcome], limit: int = 1000) -> list[Job]:
    """Run trials one after another until nothing is left, or `outcome` says None: then the process dies."""
    done: list[Job] = []
    while len(done) < limit:
        job = conductor.next()
        if job is None:
            assert conductor.finished
            break
        conductor.started(job.run)
        found = outcome(job)
        if found is None:
            return done
        end(conductor, job, found)
        done.append(job)
    return done
