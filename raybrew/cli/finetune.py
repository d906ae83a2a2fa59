"""raybrew finetune."""

from __future__ import annotations

from raybrew.cli.options import AsJson, ExperimentFile, Overrides, RunId, TaskChoice, TeacherChoice
from raybrew.cli.running import load_to_run
from raybrew.cli.terminal import make_reporter, print_json

__all__ = ["finetune"]


def finetune(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    task: TaskChoice = None,
    teacher: TeacherChoice = None,
    run_id: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on labels: makes the teacher (`teacher.model` trained as `teacher.finetune` says).

    The same command continues an interrupted run. Several teachers are trained one after another.
    """
    config = load_to_run(experiment, overrides)

    from raybrew.cli.summary import print_run
    from raybrew.verbs.finetune import finetune_all

    found = finetune_all(config, task=task, teacher=teacher, run_id=run_id, reporter=make_reporter())
    if not as_json:
        for result in found.values():
            print_run(result)
    elif len(found) == 1:
        result = next(iter(found.values()))
        print_json(result.summary | {"path": str(result.path)})
    else:
        print_json({name: result.summary | {"path": str(result.path)} for name, result in found.items()})
