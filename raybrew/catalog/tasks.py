"""The tasks: what each reads, what its outputs are, and what others call it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["TASKS", "TaskSpec", "kinds_by_head"]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One kind of task. What its keys mean stands in its section of `raybrew.config.task`."""

    kind: str
    target: str  #: module:Class
    columns: tuple[str, ...]  #: keys of `data.columns` that it reads
    outputs: str  #: logits of `classes` that exclude one another, of `labels` that do not, or `numbers`
    auto_class: str  #: the class of transformers that gives its head
    pipeline: str  #: what the hub calls it
    row: str = ""  #: a row to predict, as Python; empty: it has no predictions
    problem_type: str | None = None  #: how pipelines of transformers read the outputs of a sequence classifier
    answer: str | None = None  #: key of a prediction that is right or wrong as a whole
    share: str | None = None  #: its metric that is the share of rows that are right

    @property
    def head(self) -> str:
        """How the names of architectures with its head end: `ForSequenceClassification`."""
        return self.auto_class.removeprefix("AutoModel")


_TEXTS = {
    "columns": ("text", "text_pair", "label"),
    "auto_class": "AutoModelForSequenceClassification",
    "pipeline": "text-classification",
    "row": '{"text": "A first text."}',
}

#: Kind -> task. The first one of a head is its usual one.
TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {
        spec.kind: spec
        for spec in (
            TaskSpec(
                kind="classification",
                target="raybrew.tasks.classification:Classification",
                outputs="classes",
                problem_type="single_label_classification",
                answer="label",
                share="accuracy",
                **_TEXTS,  # type: ignore[arg-type]
            ),
            TaskSpec(
                kind="multilabel",
                target="raybrew.tasks.multilabel:Multilabel",
                outputs="labels",
                problem_type="multi_label_classification",
                answer="labels",
                share="subset_accuracy",
                **_TEXTS,  # type: ignore[arg-type]
            ),
            TaskSpec(
                kind="regression",
                target="raybrew.tasks.regression:Regression",
                outputs="numbers",
                problem_type="regression",
                **_TEXTS,  # type: ignore[arg-type]
            ),
            TaskSpec(
                kind="tagging",
                target="raybrew.tasks.tagging:Tagging",
                columns=("tokens", "tags"),
                outputs="classes",
                auto_class="AutoModelForTokenClassification",
                pipeline="token-classification",
                row='{"tokens": ["A", "first", "text"]}',
                answer="tags",
            ),
            TaskSpec(
                kind="qa",
                target="raybrew.tasks.qa:QuestionAnswering",
                columns=("question", "context", "answers", "scored_answers"),
                outputs="classes",
                auto_class="AutoModelForQuestionAnswering",
                pipeline="question-answering",
                row='{"question": "Who wrote it?", "context": "It was written by Ann."}',
                answer="answer",
                share="exact_match",
            ),
            TaskSpec(
                kind="masked_lm",
                target="raybrew.tasks.masked_lm:MaskedLM",
                columns=("text",),
                outputs="classes",
                auto_class="AutoModelForMaskedLM",
                pipeline="fill-mask",
            ),
        )
    }
)


def kinds_by_head() -> dict[str, tuple[str, ...]]:
    """End of an architecture's name -> kinds of tasks with that head, the usual one first."""
    found: dict[str, tuple[str, ...]] = {}
    for spec in TASKS.values():
        found[spec.head] = (*found.get(spec.head, ()), spec.kind)
    return found
