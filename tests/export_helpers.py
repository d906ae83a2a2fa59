"""Small random models of several families with a tokenizer, and rows for each task, as tests of exports use them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import (  # type: ignore[attr-defined]
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
)

from raybrew.demo.tokenizer import build_tokenizer
from raybrew.models.bigru import BiGRUConfig

__all__ = ["LABELS", "ROWS", "make_model", "serve_example", "write_rows"]

_WORDS = tuple(f"{a}{b}" for a in ("ka", "mo", "ti", "re", "su") for b in ("la", "ne", "do", "lu"))
_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_FAMILIES: dict[str, Any] = {
    "bert": lambda **values: BertConfig(**_SIZES, **values),
    "roberta": lambda **values: RobertaConfig(**_SIZES | {"max_position_embeddings": 66}, type_vocab_size=1, **values),
    "electra": lambda **values: ElectraConfig(**_SIZES, embedding_size=8, **values),
    "distilbert": lambda **values: DistilBertConfig(
        dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=64, **values
    ),
    "modernbert": lambda **values: ModernBertConfig(
        **_SIZES, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, **values
    ),
    "bigru": lambda **values: BiGRUConfig(embedding_size=16, hidden_size=12, **values),
    "deberta-v2": lambda **values: DebertaV2Config(
        **_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, **values
    ),
}
_HEADS = {"tagging": AutoModelForTokenClassification, "qa": AutoModelForQuestionAnswering}
_PROBLEMS = {"multilabel": "multi_label_classification", "regression": "regression"}
LABELS: dict[str, tuple[str, ...]] = {
    "classification": ("bad", "good", "so-so"),
    "multilabel": ("food", "room", "staff", "price"),
    "regression": ("score",),
    "tagging": ("B-PER", "I-PER", "O"),
    "qa": ("start", "end"),
}
#: Rows of different lengths; the last ones are longer than most.
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": " ".join(_WORDS[: 1 + 3 * number])} for number in range(6)],
    "pair": [{"text": " ".join(_WORDS[:number]), "text_pair": " ".join(_WORDS[-number:])} for number in (1, 4, 9)],
    "tokens": [{"tokens": list(_WORDS[: 1 + 4 * number])} for number in range(4)],
    "qa": [
        {"question": f"{_WORDS[number]} {_WORDS[0]} ?", "context": " ".join(_WORDS * (1 + 2 * number))}
        for number in range(3)
    ],
}


def make_model(folder: Path, family: str = "bert", task: str = "classification", seed: int = 0) -> PreTrainedModel:
    """A random model of `family` with the head of `task`, whose outputs are not small, saved with its tokenizer."""
    tokenizer = build_tokenizer([" ".join((*_WORDS, "?"))], folder, max_length=64)
    if family in ("bigru", "distilbert", "modernbert", "roberta"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    names = LABELS[task]
    config = _FAMILIES[family](
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    config.problem_type = _PROBLEMS.get(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = _HEADS.get(task, AutoModelForSequenceClassification).from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.3)
    model.eval().save_pretrained(folder)
    return model


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def serve_example(repo_root: Path) -> ModuleType:
    """`experiments/serve/student.py` as a module."""
    spec = importlib.util.spec_from_file_location("student", repo_root / "experiments" / "serve" / "student.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["student"] = module
    spec.loader.exec_module(module)
    return module
