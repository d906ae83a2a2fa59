"""Loading of tokenizers and models with errors a user can act on."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import raybrew.models.bigru  # noqa: F401 (the Auto classes know it from here on)
from raybrew.config.kinds import task_spec
from raybrew.errors import ModelError
from raybrew.models.weights import check_download, check_files, check_folder, check_padding, check_used

__all__ = [
    "COUNTS_FROM_PADDING",
    "OUTPUT_LAYER",
    "ModelSource",
    "auto_class",
    "check_head",
    "load_config",
    "load_finished",
    "load_model",
    "load_tokenizer",
    "max_tokens",
    "model_labels",
]

#: Families with a learnt vector for each position, counted from 0.
_COUNTS_FROM_ZERO = frozenset(
    {
        *("albert", "bert", "big_bird", "bros", "convbert", "distilbert", "electra", "ernie", "flaubert", "fnet"),
        *("gpt2", "gpt_bigcode", "gpt_neo", "layoutlm", "megatron-bert", "mobilebert", "mra", "nystromformer"),
        *("openai-gpt", "rembert", "roc_bert", "splinter", "squeezebert", "tapas", "xlm", "yoso"),
    }
)
#: The same, counted from behind the number of the padding token.
COUNTS_FROM_PADDING = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
#: The same from 0, if `position_biased_input` says so.
_COUNTS_IF_BIASED = frozenset({"deberta", "deberta-v2"})
#: MPNet counts from behind this number, whatever the number of its padding token is.
_PADDING_OF_MPNET = 1
#: Names of tensors with one row per label.
OUTPUT_LAYER = re.compile(r"^(?:classifier|score)(?:\.out_proj)?\.(?:weight|bias)$")

#: What transformers, safetensors, torch and pickle raise for files that are not what they should be.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a local folder, that of a finished run (for its student) or a hub name."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that holds it; None for a hub name."""
        path = Path(self.model)
        if not (path / "config.json").is_file() and (path / "student" / "config.json").is_file():
            path = path / "student"  # a run's folder stands for its model
        return path if path.is_dir() else None

    @property
    def snapshot(self) -> Path | None:
        """The folder of the hub's cache that holds a model of the hub; None where it is not there."""
        found = try_to_load_from_cache(self.model, "config.json", revision=self.revision)
        return Path(found).parent if isinstance(found, str) else None

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
        finished, missing = load_finished(source, task_kind, seed)
        if needs_head:
            check_head(source, task_kind, missing)
        return finished
    named: dict[str, Any] = {}
    if labels:  # none: the outputs are the vocabulary
        named = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }
    model, _ = _load_weights(source, task_kind, named)
    model.config.problem_type = task_spec(task_kind).problem_type
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


def check_head(source: ModelSource, task_kind: str, missing: Sequence[str]) -> None:
    """ModelError if weights are `missing` in the files of a model whose logits are read."""
    if missing:
        raise ModelError(
            f"{source.model} is not trained for {task_kind}: it lacks {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}; name a model that was trained for this task, or train this "
            "one first (`raybrew finetune` with teacher.finetune)"
        )


def load_finished(source: ModelSource, task_kind: str, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """The model as it is, and the names of weights that are not in its files, which depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs as well, which the fork does not restore.
        torch.default_generator.manual_seed(seed)
        return _load_weights(source, task_kind, {})


def auto_class(task_kind: str) -> Any:
    """The Auto class of transformers that gives a task's head."""
    return getattr(transformers, task_spec(task_kind).auto_class)


def _load_weights(source: ModelSource, task_kind: str, named: Mapping[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    """The model and the names of weights that are not in its files; ModelError if config and weights do not agree."""
    load = auto_class(task_kind).from_pretrained
    model, found = _load("model", load, source, dtype=torch.float32, output_loading_info=True, **named)
    check_used(source.model, model, found)
    if task_spec(task_kind).problem_type is not None:
        check_padding(source.model, model)
    return model, sorted(found["missing_keys"])


def model_labels(config: PretrainedConfig) -> tuple[str, ...] | None:
    """Label names that a model was trained with, in output order; None where it only has LABEL_0, LABEL_1, ...

    ModelError if a name is given twice, or the numbers are not those of outputs.
    """
    by_number: dict[Any, str] = dict(config.id2label or {})
    numbers = sorted(by_number)
    names = tuple(by_number[index] for index in numbers)
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice or numbers != list(range(len(numbers))):
        what = f"gives {', '.join(twice[:3])} to several outputs" if twice else f"has the numbers {numbers[:10]}"
        raise ModelError(
            f"id2label in config.json of {config.name_or_path or 'the model'} {what}; give each output, counted from "
            "0, a name of its own there"
        )
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def max_tokens(config: PretrainedConfig) -> int | None:
    """The longest input of a model with learnt positions; None for other models, which have no such limit."""
    family = config.model_type
    if family in _COUNTS_FROM_ZERO or (family in _COUNTS_IF_BIASED and getattr(config, "position_biased_input", True)):
        return int(config.max_position_embeddings)
    if family in COUNTS_FROM_PADDING:
        padding = _PADDING_OF_MPNET if family == "mpnet" else int(config.pad_token_id)
        return int(config.max_position_embeddings) - padding - 1
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
    path = source.folder or Path(source.model)
    if path != Path(source.model):
        source = dataclasses.replace(source, model=str(path))
    looks_local = path.is_absolute() or source.model.startswith((".", "~")) or path.exists()
    if looks_local and not path.is_dir():
        raise ModelError(f"{what} of {source.model}: no such folder ({path.absolute()})")
    if looks_local:
        check_folder(path)
    if looks_local and not (path / "config.json").is_file():
        raise ModelError(f"{what} of {source.model}: the folder has no config.json, so it holds no Hugging Face model")
    if looks_local and what == "model":
        check_files(path)
    quieter = transformers_logging.get_verbosity()
    # transformers reports on stderr what it loads, and warns of the new head that fine-tuning asks for.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if looks_local:
            check_download(path, what == "model")
        else:
            _check_snapshot(what, source)
        with _few_words_of_the_hub():
            found = function(source.model, **source.arguments(), **arguments)
        if not looks_local:
            _check_snapshot(what, source)  # of files that were downloaded just now
        return found
    except ModelError:
        raise
    except _LOADING_ERRORS as error:
        hint = "" if looks_local else " (no such local folder either; is the hub reachable, and the name right?)"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load the {what} of {source.model}{hint}: {first}") from error
    finally:
        transformers_logging.set_verbosity(quieter)


def _check_snapshot(what: str, source: ModelSource) -> None:
    """ModelError for damage to what the hub's cache has of a model of the hub."""
    folder = source.snapshot
    if folder is not None:
        check_download(folder, what == "model")
        if what == "model":
            check_files(folder)
