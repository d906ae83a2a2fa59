"""Loading of tokenizers and models with errors a user can act on."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import raybrew.models.bigru  # noqa: F401 (the Auto classes know it from here on)
from raybrew.errors import ModelError

__all__ = [
    "AUTO_CLASSES",
    "OUTPUT_LAYER",
    "PROBLEM_TYPES",
    "ModelSource",
    "has_head",
    "load_config",
    "load_model",
    "load_tokenizer",
    "max_tokens",
    "model_labels",
]

#: Task kind -> the Auto class that gives its head.
AUTO_CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "multilabel": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
    "qa": AutoModelForQuestionAnswering,
    "masked_lm": AutoModelForMaskedLM,
}
#: Task kind -> how transformers' own pipelines read the outputs of a sequence classifier.
PROBLEM_TYPES: Mapping[str, Any] = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
#: Names of tensors with one row per label.
OUTPUT_LAYER = re.compile(r"^(?:classifier|score)(?:\.out_proj)?\.(?:weight|bias)$")


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a local folder, that of a finished run (for its student) or a hub name."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}


def load_config(source: ModelSource) -> PretrainedConfig:
    """Configuration of `source`; ModelError says what was looked for and where."""
    config: PretrainedConfig = _load("config", AutoConfig.from_pretrained, source)
    return config


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Fast tokenizer of `source`; ModelError if there is none, it has no padding token or it does not fit the model."""
    tokenizer: PreTrainedTokenizerBase = _load("tokenizer", AutoTokenizer.from_pretrained, source)
    special = set(tokenizer.all_special_tokens)
    words = {token: number for token, number in tokenizer.get_vocab().items() if token not in special}
    if not words:
        # Where a folder has no tokenizer, transformers makes one that knows special tokens alone: all text is [UNK].
        raise ModelError(
            f"the tokenizer of {source.model} has no vocabulary; are its files (tokenizer.json, vocab.txt, ...) there?"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of {source.model} has no padding token; set one and save it again")
    embeddings = getattr(load_config(source), "vocab_size", None)
    if isinstance(embeddings, int) and max(words.values()) >= embeddings:
        raise ModelError(
            f"the tokenizer of {source.model} does not fit its model: token ids up to {max(words.values())}, but "
            f"{embeddings} embeddings (vocab_size); save the model with its own tokenizer"
        )
    return tokenizer


def load_model(
    source: ModelSource,
    task_kind: str,
    labels: tuple[str, ...] | None = None,
    *,
    needs_head: bool = True,
    seed: int = 0,
) -> PreTrainedModel:
    """Model of `source` with the head of the task, in float32 on the CPU.

    With `labels` the head gets that many outputs and those names; a head of another size, or that was trained for
    labels of other names, is made anew (fine-tuning), by torch's own generator.
    No names at all (`masked_lm`): its outputs are the vocabulary.
    Without, all weights must be there (a finished teacher or student), or ModelError. `needs_head=False`, for what
    reads no logits, makes up those that lack: from `seed`, and without a trace in torch's generators.
    """
    if labels is None:
        finished, missing = _finished(source, task_kind, seed)
        if missing and needs_head:
            raise ModelError(
                f"{source.model} is not trained for {task_kind}: it lacks {', '.join(missing[:4])}"
                f"{', ...' if len(missing) > 4 else ''}; name a model that was trained for this task, or train this "
                "one first (`raybrew finetune` with teacher.finetune)"
            )
        return finished
    named: dict[str, Any] = {}
    if labels:  # none: the outputs are the vocabulary
        named = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }
    load = AUTO_CLASSES[task_kind].from_pretrained
    model: PreTrainedModel = _load("model", load, source, dtype=torch.float32, **named)
    model.config.problem_type = PROBLEM_TYPES.get(task_kind)
    before = model_labels(load_config(source))
    if labels and before is not None and before != labels:
        _renew_output(model)
    return model


def _renew_output(model: PreTrainedModel) -> None:
    """Random weights for the output layer: each of its rows is of another label than the one it was trained for."""
    deviation = float(getattr(model.config, "initializer_range", None) or 0.02)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if OUTPUT_LAYER.match(name):
                tensor.normal_(0.0, deviation) if tensor.dim() > 1 else tensor.zero_()


def has_head(source: ModelSource, task_kind: str) -> bool:
    """Whether `source` holds all weights of a model for this task, so that its logits mean something."""
    return not _finished(source, task_kind, 0)[1]


def _finished(source: ModelSource, task_kind: str, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """The model as it is, and the names of weights that are not in its files, which depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs as well, which the fork does not restore.
        torch.default_generator.manual_seed(seed)
        load = AUTO_CLASSES[task_kind].from_pretrained
        model, found = _load("model", load, source, dtype=torch.float32, output_loading_info=True)
    return model, sorted(found["missing_keys"])


def model_labels(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Label names that a model was trained with, in output order; None where it only has LABEL_0, LABEL_1, ..."""
    by_number: dict[Any, str] = dict(config.id2label or {})
    names = tuple(by_number[index] for index in sorted(by_number))
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def max_tokens(config: PretrainedConfig) -> int | None:
    """The longest input of a model with learnt positions; None for other models, which have no such limit."""
    if config.model_type in ("albert", "bert", "distilbert", "electra"):
        return int(config.max_position_embeddings)
    if config.model_type in ("camembert", "roberta", "xlm-roberta"):
        # Their positions are counted from behind that of padding.
        return int(config.max_position_embeddings) - int(config.pad_token_id) - 1
    return None


@contextlib.contextmanager
def _few_words_of_the_hub() -> Iterator[None]:
    """Of what huggingface_hub logs of each failed request and each wait, one line says that there are some."""
    seen: list[logging.LogRecord] = []

    def first(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "thrown while requesting" not in text and not text.startswith("Retrying in"):
            return True
        seen.append(record)
        record.msg, record.args = "no answer of the Hugging Face hub; trying again for up to half a minute", ()
        return len(seen) == 1

    log = logging.getLogger("huggingface_hub.utils._http")
    log.addFilter(first)
    try:
        yield
    finally:
        log.removeFilter(first)


def _load(what: str, function: Any, source: ModelSource, **arguments: Any) -> Any:
    path = Path(source.model)
    if not (path / "config.json").is_file() and (path / "student" / "config.json").is_file():
        path = path / "student"  # a run's folder stands for its model
        source = dataclasses.replace(source, model=str(path))
    looks_local = path.is_absolute() or source.model.startswith((".", "~")) or path.exists()
    if looks_local and not path.is_dir():
        raise ModelError(f"{what} of {source.model}: no such folder ({path.absolute()})")
    if looks_local and not (path / "config.json").is_file():
        raise ModelError(f"{what} of {source.model}: the folder has no config.json, so it holds no Hugging Face model")
    quieter = transformers_logging.get_verbosity()
    # transformers reports on stderr what it loads, and warns of the new head that fine-tuning asks for.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with _few_words_of_the_hub():
            return function(source.model, **source.arguments(), **arguments)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        hint = "" if looks_local else " (no such local folder either; is the hub reachable, and the name right?)"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the {what} of {source.model}{hint}: {first}") from error
    finally:
        transformers_logging.set_verbosity(quieter)
