"""One part of each family, as a user writes them: the tests put this file where no package of raybrew is."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raybrew.catalog.methods import Method
from raybrew.catalog.schedulers import Scheduler
from raybrew.catalog.searchers import Searcher
from raybrew.catalog.shapes import NamedShape
from raybrew.catalog.tasks import TaskSpec
from raybrew.catalog.trackers import TrackerSpec
from raybrew.config.base import Many, Section
from raybrew.config.sweep import SchedulerConfig, SweepConfig
from raybrew.config.task_kinds import OwnTaskConfig
from raybrew.tracking.base import scalars


def absolute(student: Any, teacher: Any, mask: Any) -> Any:
    """A match loss: absolute differences of hidden states, a mean over dimensions for each token."""
    from raybrew.losses.term import LossTerm

    each = (student.float() - teacher.float()).abs().mean(dim=-1)
    return LossTerm((each * mask).sum(), mask.sum())


def total_variation(
    student: Any, teacher: Any, mask: Any, *, temperature: float, scale_by_temperature_squared: bool
) -> Any:
    """A KD loss."""
    from raybrew.losses.logits import tv

    return tv(student, teacher, mask, temperature=temperature)


def crossed(student: int, teacher: int) -> list[tuple[int, int]]:
    """A layer rule: the student's layers with the teacher's from the last one down."""
    return [(layer, teacher - layer + 1) for layer in range(1, student + 1)]


def halved(student: Any, teacher: Any, layers: Sequence[int]) -> str:
    """An initialisation: the teacher's weights, embeddings halved."""
    import torch

    from raybrew.models.initialise import init_from_teacher

    report = init_from_teacher(student, teacher, layers)
    with torch.no_grad():
        student.get_input_embeddings().weight.mul_(0.5)
    return f"halved, {report}"


WIDE = NamedShape(layers=2, hidden=32, heads=2, feed_forward=40, summary="as deep as the tests' teacher")

GENTLE = Method("labels and a little of the teacher", {"temperature": 3.0, "kd_weight": 0.2, "hard_label_weight": 0.8})


class MoodConfig(OwnTaskConfig):
    """The mood of a text."""

    labels: Many[str] | None = None
    """Names of moods."""
    metric: Literal["accuracy"] = "accuracy"
    """Evaluation metric."""


def mood_task(config: MoodConfig, columns: Any) -> Any:
    """Classification under another name."""
    from raybrew.tasks.classification import Classification

    class Mood(Classification):
        kind = config.kind

    return Mood(config, columns)  # type: ignore[arg-type]


def mood(module: str) -> TaskSpec:
    return TaskSpec(
        kind=f"{module}:MOOD",
        target=f"{module}:mood_task",
        config=f"{module}:MoodConfig",
        columns=("text", "label"),
        outputs="classes",
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        row='{"text": "A first text."}',
        problem_type="single_label_classification",
        one_of_many=True,
    )


MOOD = mood(__name__)


class Backwards:
    """A searcher's source: listed values from the last to the first."""

    exact = True

    def __init__(self, sweep: SweepConfig) -> None:
        (self._key,) = sweep.space
        self._values: Iterator[Any] = reversed(sweep.space[self._key].values)

    def next(self, known: Collection[str]) -> dict[str, Any] | None:
        value = next(self._values, None)
        return None if value is None else {self._key: value}

    def tell(self, values: Mapping[str, Any], objectives: Sequence[float] | None) -> None:
        return None

    def repeat(self, values: Mapping[str, Any], known: Collection[str]) -> None:
        self.next(known)


BACKWARDS = Searcher("listed values from the last to the first", f"{__name__}:Backwards", lists=True)


def impatient(config: SchedulerConfig) -> Any:
    """A scheduler: a trial below `grace` stops at its first report."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Impatient(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            stops = result["quality"] < config.grace
            return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    return Impatient()  # type: ignore[no-untyped-call]


IMPATIENT = Scheduler("below `grace` a trial stops", f"{__name__}:impatient", ("grace",))


class NotebookConfig(Section):
    """Keys of the tracker."""

    file: str
    """Where to write."""
    group: str | None = None
    """What runs are put under."""


class Notebook:
    """A tracker: lines in a file."""

    name = "notebook"

    def __init__(self, config: NotebookConfig, *, experiment: str, job_type: str) -> None:
        self._path = Path(config.file)
        self._head = {"experiment": experiment, "job_type": job_type, "group": config.group}

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool) -> None:
        self._write({**self._head, "run_id": run_id})

    def log(self, record: Mapping[str, Any]) -> None:
        self._write(scalars(record))

    def finish(self, status: str) -> None:
        self._write({"status": status})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


NOTEBOOK = TrackerSpec(
    "Notebook", "lines in a file", f"{__name__}:Notebook", section=f"{__name__}:NotebookConfig", group="group"
)
