"""The tasks: what each reads, what its outputs are, and what others call it. `multi` is several of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

__all__ = ["DEFAULT_KIND", "HIDDEN_WORDS", "TASKS", "TaskSpec", "kinds_by_head"]

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One kind of task. One of your own is such a row, named as `package.module:Name`, which is its `kind` too."""

    kind: str
    target: str  #: module:Class, f(config, columns) -> `raybrew.tasks.base.Task`
    config: str  #: module:Class of its keys; of a task of your own it derives from `OwnTaskConfig`
    columns: tuple[str, ...]  #: keys of `data.columns` that it reads
    outputs: str  #: logits of `classes` that exclude one another, of `labels` that do not, or `numbers`
    auto_class: str  #: the class of transformers that gives its head
    pipeline: str  #: what the hub calls it
    row: str = ""  #: a row to predict, as Python; empty: it has no predictions
    problem_type: ProblemType | None = None  #: how pipelines of transformers read a sequence classifier's outputs
    answer: str | None = None  #: key of a prediction that is right or wrong as a whole
    share: str | None = None  #: its metric that is the share of rows that are right
    one_of_many: bool = False  #: the last dimension of its logits has the same classes for all items, one being right
    places: bool = False  #: its classes are places among a row's tokens, so that they depend on the tokenizer
    conll: bool = False  #: reads words with tags, as files of the format conll hold
    stored: bool = True  #: a teacher's outputs can be stored and shared; otherwise it runs live, as its only task
    no_augment: str = ""  #: why its rows cannot be augmented; empty: they can

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
                config="raybrew.config.task_kinds:ClassificationConfig",
                one_of_many=True,
                outputs="classes",
                problem_type="single_label_classification",
                answer="label",
                share="accuracy",
                **_TEXTS,  # type: ignore[arg-type]
            ),
            TaskSpec(
                kind="multilabel",
                target="raybrew.tasks.multilabel:Multilabel",
                config="raybrew.config.task_kinds:MultilabelConfig",
                outputs="labels",
                problem_type="multi_label_classification",
                answer="labels",
                share="subset_accuracy",
                **_TEXTS,  # type: ignore[arg-type]
            ),
            TaskSpec(
                kind="regression",
                target="raybrew.tasks.regression:Regression",
                config="raybrew.config.task_kinds:RegressionConfig",
                outputs="numbers",
                problem_type="regression",
                **_TEXTS,  # type: ignore[arg-type]
            ),
            TaskSpec(
                kind="tagging",
                target="raybrew.tasks.tagging:Tagging",
                config="raybrew.config.task_kinds:TaggingConfig",
                one_of_many=True,
                conll=True,
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
                config="raybrew.config.task_kinds:QAConfig",
                places=True,
                no_augment="an answer does not stand where it stood once words change; name further questions in "
                "data.unlabeled",
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
                config="raybrew.config.task_kinds:MaskedLMConfig",
                one_of_many=True,
                stored=False,
                no_augment="it hides words of each row by itself",
                columns=("text",),
                outputs="classes",
                auto_class="AutoModelForMaskedLM",
                pipeline="fill-mask",
            ),
        )
    }
)


#: The kind of a file that names none, and of models that guess hidden words.
DEFAULT_KIND, HIDDEN_WORDS = "classification", "masked_lm"


def kinds_by_head() -> dict[str, tuple[str, ...]]:
    """End of an architecture's name -> kinds of tasks with that head, the usual one first."""
    found: dict[str, tuple[str, ...]] = {}
    for spec in TASKS.values():
        found[spec.head] = (*found.get(spec.head, ()), spec.kind)
    return found
