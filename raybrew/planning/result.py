"""What a plan says: sizes and times of each store and of training, the advice that follows, and all of it in words.

The words are titled tables of two columns, for terminals and notebooks alike.
"""

from __future__ import annotations

import dataclasses
import datetime
import html
from typing import Any

from raybrew.pipeline.sizes import Sizes

__all__ = ["FinetunePlan", "Plan", "StorePlan", "StudentPlan", "TrainingPlan", "plan_html", "plan_tables"]


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """One teacher's pass over its rows. Seconds are of one actor with the teacher loaded; `bytes` by folder."""

    label: str
    teacher: str
    location: str
    rows: int
    tokens: int
    longest: int
    shards: int
    element_type: str
    bytes: dict[str, int]
    total_bytes: int
    free_bytes: int | None
    tokens_per_second: float
    actor_seconds: float
    actors: int
    device: str
    unit_name: str = "rows"  #: what `rows` counts: a row may be several windows

    @property
    def seconds(self) -> float:
        """Wall seconds with all actors busy."""
        return self.actor_seconds / max(1, min(self.actors, self.shards))

    @property
    def write_rate(self) -> float:
        """Bytes per second that all actors together write, if nothing but the teacher holds them up."""
        return self.total_bytes / max(self.seconds, 1e-9)

    @property
    def fits(self) -> bool:
        """Whether the disk (for s3:// and gs:// that of the copies on this node) has room."""
        return self.free_bytes is None or self.total_bytes <= self.free_bytes


@dataclasses.dataclass(frozen=True)
class StudentPlan:
    """What the student is made of. Bytes are those of float32, in which raybrew keeps weights."""

    parameters: int
    weight_bytes: int
    training_bytes: int
    """Weights, gradients and optimizer state, those of projections too, in each worker (sharded: in all together).

    Activations come on top."""
    vocabulary: int
    """Pieces."""
    vocabulary_before: int | None = None  #: where it is trimmed
    parameters_saved: int = 0  #: by trimming
    vocabulary_rows: int | None = None  #: rows that the trimmed vocabulary was counted in here
    vocabulary_rows_in_all: int | None = None

    @property
    def vocabulary_is_whole(self) -> bool:
        """Whether the vocabulary was counted in all rows, as training will, and not in a sample of them."""
        return self.vocabulary_rows == self.vocabulary_rows_in_all


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """The student's training by a bare loop of its forward and backward pass; a live teacher comes on top."""

    rows: int
    epochs: float
    steps: int
    step_seconds: float
    worker_seconds: float
    workers: int
    device: str
    unit_name: str = "rows"  #: what `rows` counts

    @property
    def epoch_seconds(self) -> float:
        """Wall seconds of one epoch from the store."""
        return self.worker_seconds / max(self.epochs, 1e-9) / self.workers


@dataclasses.dataclass(frozen=True)
class FinetunePlan:
    """The training of a teacher that is not fine-tuned yet, as `raybrew finetune` runs it."""

    label: str
    teacher: str
    training: TrainingPlan


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an experiment will take. Device seconds add up what all actors and workers are busy."""

    name: str
    trials: int
    stores: tuple[StorePlan, ...]
    training: TrainingPlan | None
    price_per_hour: float | None
    problems: tuple[str, ...]
    live_because: str | None = None  #: why no store can hold what is asked
    trains_in_teacher: bool = False
    student: StudentPlan | None = None
    finetunes: tuple[FinetunePlan, ...] = ()
    """Teachers that are to be trained first; each is trained once, whatever the number of trials."""
    controls: int = 0  #: trainings of a sweep without the teacher, or with its logits alone, beside its `trials`

    @property
    def finetune_seconds(self) -> float:
        """Device seconds of training the teachers."""
        return sum(each.training.worker_seconds for each in self.finetunes)

    @property
    def passes(self) -> float:
        """How often students read all rows: trials times epochs."""
        return self.trials * (self.training.epochs if self.training is not None else 1.0)

    @property
    def teacher_seconds(self) -> float:
        """Device seconds of one pass of all teachers."""
        return sum(store.actor_seconds for store in self.stores)

    @property
    def student_seconds(self) -> float:
        """Device seconds of all trainings without teachers, those of controls too."""
        return (self.trials + self.controls) * (self.training.worker_seconds if self.training is not None else 0.0)

    @property
    def stored_seconds(self) -> float:
        """Device seconds with one pass of the teacher, its training included."""
        return self.finetune_seconds + self.teacher_seconds + self.student_seconds

    @property
    def live_seconds(self) -> float:
        """Device seconds with the teacher in every step, its training included."""
        return self.finetune_seconds + self.passes * self.teacher_seconds + self.student_seconds

    @property
    def read_rate(self) -> float:
        """Bytes per second that one training reads of the stores, if nothing but the student holds it up."""
        if self.training is None:
            return 0.0
        return sum(store.total_bytes for store in self.stores) / max(self.training.epoch_seconds, 1e-9)

    @property
    def advice(self) -> str:
        """`store` or `live`."""
        if self.live_because:
            return "live"
        return "store" if all(store.fits for store in self.stores) and self.passes > 1 else "live"

    @property
    def verdict(self) -> str:
        """The advice in one sentence."""
        if not self.stores and self.trains_in_teacher:
            return "the student trains inside its teacher and is asked to match nothing of it: nothing to store"
        if not self.stores:
            return "no teacher is asked for anything: the student learns from labels alone"
        if self.live_because:
            return f"run the teacher live: {self.live_because}"
        lacking = [store for store in self.stores if not store.fits]
        if lacking:
            return f"run the teacher live, or give store.path more room: {self.problems[0]}"
        if self.passes <= 1:
            return "run the teacher live (teacher.source=live): its outputs would be read once only"
        return (
            f"store: the teacher runs once instead of {round(self.passes, 2):g} times{self._trials_text}, "
            f"{self._live_ratio:.1f} times less device time than live"
        )

    @property
    def _live_ratio(self) -> float:
        """Live over stored; the teacher's own training is the same in both."""
        mine = self.finetune_seconds
        return (self.live_seconds - mine) / max(self.stored_seconds - mine, 1e-9)

    @property
    def _trials_text(self) -> str:
        if self.trials == 1 or self.training is None:
            return ""
        epochs = self.training.epochs
        return f" ({self.trials} trainings of {round(epochs, 2):g} epoch{'' if epochs == 1 else 's'})"

    def _repr_html_(self) -> str:
        """Tables and verdict, for notebooks."""
        return plan_html(self)

    def plain(self) -> dict[str, Any]:
        """All values as plain JSON types, the derived ones too."""
        price = None
        if self.price_per_hour is not None:
            price = {
                "per_hour": self.price_per_hour,
                "store": self.stored_seconds / 3600 * self.price_per_hour,
                "live": self.live_seconds / 3600 * self.price_per_hour,
            }
        training = self.training
        return {
            "name": self.name,
            "trials": self.trials,
            "controls": self.controls,
            "stores": [
                dataclasses.asdict(store)
                | {"seconds": store.seconds, "bytes_per_second": store.write_rate, "fits": store.fits}
                for store in self.stores
            ],
            "finetune": [dataclasses.asdict(each) for each in self.finetunes],
            "student": None if self.student is None else dataclasses.asdict(self.student),
            "training": None
            if training is None
            else dataclasses.asdict(training) | {"epoch_seconds": training.epoch_seconds},
            "read_bytes_per_second": self.read_rate,
            "device_hours": {"store": self.stored_seconds / 3600, "live": self.live_seconds / 3600},
            "price": price,
            "break_even_passes": 1,
            "passes": self.passes,
            "advice": self.advice,
            "verdict": self.verdict,
            "problems": list(self.problems),
        }


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
            hours, per_hour = seconds / 3600, plan.price_per_hour
            price = "" if per_hour is None else f", price {hours * per_hour:.2f}"
            words = f"{_time(seconds)} of one {device} worker ({hours:.2f} {device} hours{price})"
            rows.append((f"{finetune}{_trainings(plan)}, {name}", words))
    if plan.stores and not plan.live_because:
        rows.append(("break-even", f"1 pass over the rows; here are {round(plan.passes, 2):g}"))
    return [*tables, (f"training {plan.name}", rows)]


def _trainings(plan: Plan) -> str:
    count = f"{plan.trials} training{'s' if plan.trials > 1 else ''}"
    return f"{count} and {plan.controls} control{'s' if plan.controls > 1 else ''}" if plan.controls else count


def _amount(training: TrainingPlan) -> tuple[str, str]:
    epochs = f"{round(training.epochs, 2):g} epoch{'' if training.epochs == 1 else 's'}"
    name = training.unit_name
    return f"{name}, steps", f"{training.rows} {name}, {training.steps} steps in {epochs}"


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
    amount = f"{store.rows} {store.unit_name}, {store.tokens} tokens, at most {store.longest} in one"
    rows = [("teacher", store.teacher), (f"{store.unit_name}, tokens", amount)]
    speed = f"{store.tokens_per_second:.0f} tokens/s, {store.device}"
    if not store.bytes:
        return f"live teacher of {store.label}", [*rows, ("a pass", f"{_time(store.actor_seconds)} ({speed})")]
    room = "" if store.free_bytes is None else f", {Sizes.text(store.free_bytes)} free"
    rows += [(name, Sizes.text(count)) for name, count in store.bytes.items()]
    rows += [
        ("in all", f"{Sizes.text(store.total_bytes)} in {store.shards} shard{'' if store.shards == 1 else 's'}{room}"),
        ("place", store.location),
        (
            "capture",
            f"{_time(store.actor_seconds)} by one actor ({speed}), "
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
