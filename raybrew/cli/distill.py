"""raybrew distill."""

from __future__ import annotations

from raybrew.cli.options import AsJson, ExperimentFile, Overrides, RunId
from raybrew.cli.running import load_to_run
from raybrew.cli.terminal import make_reporter, print_json

__all__ = ["distill"]


def distill(
    experiment: ExperimentFile, overrides: Overrides = None, run_id: RunId = None, as_json: AsJson = False
) -> None:
    """Train the student from the teacher's stored or live outputs; the best one is kept as a Hugging Face folder.

    The same command continues an interrupted run.
    """
    config = load_to_run(experiment, overrides)

    from raybrew.cli.summary import print_run
    from raybrew.verbs.distill import distill as verb

    result = verb(config, run_id=run_id, reporter=make_reporter())
    if as_json:
        print_json(result.summary | {"path": str(result.path)})
    else:
        print_run(result)
