"""`summary.json` of a run: what it measured, from what, and on which machine. It marks the run as done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybrew.errors import EnvironmentProblem
from raybrew.files import write_json
from raybrew.records.sections import Section, integer, read_object

__all__ = [
    "SUMMARY",
    "Best",
    "Chosen",
    "HeldOut",
    "Latency",
    "Losses",
    "Measured",
    "ModelFacts",
    "Pruned",
    "RowCounts",
    "RunSummary",
    "TeacherFacts",
    "read_summary",
    "write_summary",
]

SUMMARY = "summary.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts(Section):
    """Sizes of a model; those that its config does not name are None."""

    architecture: str | None
    layers: int | None
    hidden: int | None
    heads: int | None
    feed_forward: int | None
    vocabulary: int | None
    parameters: int | None
    megabytes: float | None
    """Of 10^6 bytes, in float32."""
    description: str | None

    @property
    def sizes(self) -> list[str | int | None]:
        """All that decides how long it takes; empty for summaries that do not name the architecture."""
        sizes = [self.layers, self.hidden, self.heads, self.feed_forward, self.vocabulary, self.parameters]
        return [self.architecture, *sizes] if self.architecture else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best(Section):
    """The best evaluation: `metric` is one of the task, or `loss`. `losses` has the evaluation losses by term."""

    step: int | None
    epoch: float | None
    metric: str | None
    value: float | None
    metrics: Mapping[str, float]
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured(Section):
    """One evaluation."""

    metrics: Mapping[str, float]
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen(Section):
    """How the best checkpoint was chosen: on how many rows, among how many, by which metric."""

    rows: int | None
    checkpoints: int | None
    by: str | None
    configurations: int | None = None
    """Of a sweep: among how many the run was chosen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowCounts(Section):
    """Rows as the files have them; `augmented` of the unlabelled ones were made by `data.augment`."""

    train: int | None
    unlabeled: int | None
    augmented: int | None = None
    eval: int | None

    @property
    def named(self) -> dict[str, int]:
        """Counts other than 0."""
        counts = {"train": self.train, "unlabeled": self.unlabeled, "augmented": self.augmented, "eval": self.eval}
        return {name: count for name, count in counts.items() if count}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency(Section):
    """Milliseconds per example by batch size (`batch_1`), of student and teacher in one round, and its conditions."""

    device: str | None
    machine: str | None
    precision: str | None
    threads: int | None
    tokens: int | None
    rounds: int | None
    round: str | None
    """None for runs of versions that timed models one by one."""
    alone: bool
    """Whether no other trial of a sweep ran meanwhile."""
    task: str | None = None
    """Of several tasks: whose models were timed."""
    student: Mapping[str, float]
    teacher: Mapping[str, float] | None

    @property
    def conditions(self) -> tuple[str | int | None, ...]:
        """What a time depends on besides the model."""
        return self.device, self.machine, self.precision, self.threads, self.tokens, self.alone

    @property
    def where(self) -> str:
        """Device, threads and tokens in a few words, as far as they are known."""
        device = self.device if self.threads is not None else self.machine or self.device
        on_cpu = (self.device or "").startswith("cpu") and self.threads
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}" if on_cpu else None
        tokens = f"{self.tokens} tokens" if self.tokens else None
        precision = self.precision if self.precision not in (None, "fp32") else None
        return ", ".join(part for part in (device, precision, threads, tokens) if part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut(Section):
    """What a model reaches on `data.test`; a teacher's has its metrics and rows only."""

    metric: str | None = None
    value: float | None = None
    metrics: Mapping[str, float]
    rows: int | None
    source: str | None = None
    key: str | None = None
    """Equal for the same rows with the same tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherFacts(Section):
    """A teacher, or several: their average, or of several tasks together, with each one's under `members`."""

    model: str | None
    fingerprint: str | None
    weight: float | None = None
    average: str | None = None
    parameters: int | None = None
    megabytes: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    members: Mapping[str, TeacherFacts] = dataclasses.field(default_factory=dict)
    cautions: tuple[Any, ...] = ()
    test: HeldOut | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses(Section):
    """What a student learns from. Stages stand beside these keys under their names, each in words."""

    method: str | None = None
    source: str | None
    """`store`, `live`, both, or `labels`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruned(Section):
    """That a sweep removed the student: which one, if known, and when."""

    by: str | None
    date: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary(Section):
    """A finished run. Cautions are those of `raybrew.data.cautions`, as `Caution.plain` gives them."""

    verb: str | None
    name: str | None
    """Of the experiment."""
    run_id: str | None
    status: str | None
    seed: int | None
    student: ModelFacts
    best: Best | None
    chosen: Chosen
    last: Measured
    steps: int | None
    ended_by: str | None
    epochs: float | None
    rows: RowCounts
    wall_seconds: float | None
    workers: int | None
    precision: str | None
    device: str | None
    latency: Latency | None
    latency_ms: Mapping[str, Any]
    """The student's part of `latency`, for readers of older versions."""
    role: str | None
    teacher: TeacherFacts | None
    base_model: str | None = None
    """What a teacher was fine-tuned from."""
    distill: Losses | None = None
    cautions: tuple[Any, ...]
    tasks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    test: HeldOut | None = None
    pruned: Pruned | None = None

    @property
    def tokens(self) -> int | None:
        """Length of the rows that the student was timed on."""
        return integer(self.latency_ms.get("tokens"))


def read_summary(folder: Path, problems: list[str] | None = None) -> RunSummary | None:
    """The summary of the run in `folder`; None while there is none, or if it is unreadable, as `problems` tell."""
    value = read_object(folder / SUMMARY, [] if problems is None else problems, needed=False)
    return None if value is None else RunSummary.read(value)


def write_summary(folder: Path, summary: RunSummary) -> None:
    """Write the summary; EnvironmentProblem if the disk does not take it."""
    try:
        write_json(folder / SUMMARY, summary.plain())
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {folder}: {error.strerror or error}") from error
