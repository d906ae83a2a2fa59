"""Small random models of each family with a tokenizer of the kind it comes with, and rows for each task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

from raybrew.models.loading import auto_class

__all__ = [
    "FAMILY_MODELS",
    "OTHER_MODELS",
    "TEXTS",
    "make_tokenizer",
    "rows_of",
    "save_family_teacher",
    "without_latency",
]

TEXTS = (
    "The old man sat by the sea, waiting for the boat from Lisbon.",
    "Anna met Peter in Paris; they spoke of nothing but the weather!",
    "What a dull film it was: a hundred and twenty minutes of rain.",
    "Maria works for Siemens in Berlin, and has done since 2019.",
    "A great evening - superb music, lovely people, fine food.",
    "Nobody in Oslo knew why the train was late again.",
    "He wrote three letters to Clara, who never answered him.",
    "The committee met in Geneva and decided to meet again.",
)

#: What tokenizers have seen beside the rows.
_OTHER_TEXTS = (
    "Quarks bounce through cold vacuum; zebras gallop past jungle villages.",
    "Every judge quickly examined dozens of baroque vases and jars.",
)

_SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
#: Name -> model type, kind of tokenizer, and what its config needs beside the usual sizes.
FAMILY_MODELS: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType(
    {
        "bert": ("bert", "wordpiece", _SIZES),
        "roberta": ("roberta", "bytes", {**_SIZES, "max_position_embeddings": 130, "type_vocab_size": 1}),
        "electra": ("electra", "wordpiece", {**_SIZES, "embedding_size": 16}),
        "distilbert": ("distilbert", "wordpiece", {"n_layers": 4, "dim": 32, "n_heads": 4, "hidden_dim": 64}),
        "deberta-v3": (
            "deberta-v2",
            "unigram",
            {
                **_SIZES,
                "relative_attention": True,
                "position_buckets": 16,
                "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": False,
                "share_att_key": True,
                "norm_rel_ebd": "layer_norm",
                "type_vocab_size": 0,
            },
        ),
        # A window shorter than the rows, so that local layers do cut something off.
        "modernbert": ("modernbert", "bytes", {**_SIZES, "local_attention": 8, "global_attn_every_n_layers": 2}),
        "minilm": ("bert", "wordpiece", {**_SIZES, "hidden_size": 24, "intermediate_size": 96}),
    }
)

#: Further architectures, in the same terms.
OTHER_MODELS: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType(
    {
        "albert": ("albert", "wordpiece", {**_SIZES, "embedding_size": 16}),
        "camembert": ("camembert", "bytes", {**_SIZES, "max_position_embeddings": 130, "type_vocab_size": 1}),
        "gpt2": ("gpt2", "bytes", {"n_layer": 4, "n_embd": 32, "n_head": 4, "n_positions": 128}),
        "mpnet": ("mpnet", "wordpiece", {**_SIZES, "max_position_embeddings": 130}),
        "xlm-roberta": ("xlm-roberta", "unigram", {**_SIZES, "max_position_embeddings": 130, "type_vocab_size": 1}),
    }
)


def make_tokenizer(kind: str, folder: Path, size: int = 200, texts: tuple[str, ...] = TEXTS) -> PreTrainedTokenizerFast:
    """Trained on `texts`: `wordpiece` (BERT), `bytes` (byte-level BPE, RoBERTa, ModernBERT) or `unigram` (DeBERTa-v3).

    Unigram has no larger vocabulary than its texts give.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    elif kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size + 160,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    backend.train_from_iterator((*texts, *_OTHER_TEXTS), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", model_max_length=128, **names)
    if kind == "bytes":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_family_teacher(name: str, folder: Path, task: str, labels: tuple[str, ...], seed: int = 0) -> str:
    """A model of the family `name` with the head of `task`, finished as far as its config says."""
    model_type, kind, sizes = {**FAMILY_MODELS, **OTHER_MODELS}[name]
    tokenizer = make_tokenizer(kind, folder)
    numbers = {
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "vocab_size": len(tokenizer),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    config = CONFIG_MAPPING[model_type](**{"max_position_embeddings": 128, **numbers, **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto_class(task).from_config(config).save_pretrained(folder)
    return str(folder)


def rows_of(task: str, path: Path, count: int = 12) -> str:
    """`count` rows for a task, written to `path` as JSON lines."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        text = TEXTS[number % len(TEXTS)]
        if task == "classification":
            rows.append({"text": f"{text} {number}", "label": ("no", "yes")[number % 2]})
        elif task == "multilabel":
            rows.append({"text": f"{text} {number}", "label": [[], ["no"], ["yes"], ["no", "yes"]][number % 4]})
        elif task == "regression":
            rows.append({"text": f"{text} {number}", "label": number / 4})
        elif task == "masked_lm":
            rows.append({"text": f"{text} {number}"})
        elif task == "tagging":
            words = [*text.split(), str(number)]
            tags = ["B-X" if word[0].isupper() else "O" for word in words]
            rows.append({"tokens": words, "tags": tags})
        else:
            word = next(word for word in text.split()[1:] if word[0].isupper() or len(word) > 5)
            answers = {"text": [word], "answer_start": [text.index(word)]}
            rows.append({"question": f"who or what, number {number}?", "context": text, "answers": answers})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def without_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of the time of runs as short as those of tests."""
    times = {"batch_1": 1.0, "batch_32": 1.0}
    facts = {"device": "cpu (none)", "machine": "none", "precision": "fp32", "threads": 1, "tokens": 8, "rounds": 3}
    latency = {**facts, "round": "0", "alone": True, "student": times, "teacher": times}
    monkeypatch.setattr("raybrew.runs.hooks.time_student", lambda *_, **__: latency)
