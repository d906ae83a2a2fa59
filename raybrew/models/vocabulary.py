"""A student's own, smaller vocabulary: a folder with its tokenizer, and which rows of the embeddings belong to it.

The tokenizer has the pieces that a corpus needs, and no others: WordPiece, BPE and Unigram of `tokenizers`. With all
pieces of a corpus kept, each text of it is cut into the same pieces as before: WordPiece takes the longest piece that
fits, which is still there, and no longer one was added. Unigram takes the best of all ways, which is still there. BPE
takes merges in their order; those that make a kept piece are kept with all that they are made of, so the first one that
applies is the same at each step.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from raybrew.config.problems import near_match
from raybrew.errors import ConfigError, ModelError
from raybrew.models.loading import COUNTS_FROM_PADDING

__all__ = [
    "VOCABULARY_FILE",
    "Vocabulary",
    "find_vocabulary",
    "keep_embeddings",
    "open_vocabulary",
    "trim_tokenizer",
    "trimmed_config",
]

#: Written last: a folder that has it is whole.
VOCABULARY_FILE = "vocabulary.json"

#: Token ids in configs, beside the size of the vocabulary.
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a trimmed tokenizer has of the one it was made of."""

    folder: Path
    base: str
    """What the pieces of the whole tokenizer are called (`raybrew.data.encoded.piece_fingerprint`)."""
    exact: bool
    """Whether all rows it was trimmed to are cut into the same pieces, so that only their numbers are others."""
    kept: npt.NDArray[np.int64]
    """Old id of each piece, (pieces,)."""
    size_before: int


def find_vocabulary(folder: str | Path) -> Vocabulary | None:
    """The trimmed vocabulary in a folder; None if it holds none, or is no folder."""
    path = Path(folder) / VOCABULARY_FILE
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


def open_vocabulary(folder: str | Path) -> Vocabulary:
    """The trimmed vocabulary in a folder; ModelError if there is none."""
    found = find_vocabulary(folder)
    if found is None:
        raise ModelError(f"{folder}: no trimmed vocabulary; run the command again, which makes it")
    return found


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Vocabulary:
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = np.array(values["kept"], np.int64)
    return Vocabulary(path.parent, values["base"], values["exact"], kept, values["size_before"])


def trimmed_config(config: PretrainedConfig, kept: npt.NDArray[np.int64]) -> PretrainedConfig:
    """A copy of a model's config for the pieces in `kept`; ModelError where positions would move with padding."""
    found = copy.deepcopy(config)
    new = {int(old): number for number, old in enumerate(kept)}
    for name in _TOKEN_IDS:
        old = getattr(config, name, None)
        if isinstance(old, int):
            setattr(found, name, new.get(old))
    if config.model_type in COUNTS_FROM_PADDING and found.pad_token_id != config.pad_token_id:
        raise ModelError(
            f"student.vocabulary: the padding token of this {config.model_type} would become number "
            f"{found.pad_token_id} instead of {config.pad_token_id}, from which its positions are counted; name pieces "
            "that come before it in student.vocabulary.keep"
        )
    found.vocab_size = len(kept)
    return found


def keep_embeddings(model: PreTrainedModel, kept: npt.NDArray[np.int64]) -> None:
    """Leaves `model`, in place, the rows of its word embeddings that belong to the pieces in `kept`."""
    embeddings: nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
    with torch.no_grad():
        rows = embeddings.weight[torch.from_numpy(kept)].clone()
    embeddings.weight = nn.Parameter(rows)
    embeddings.num_embeddings = len(kept)
    if embeddings.padding_idx is not None:
        embeddings.padding_idx = int(np.searchsorted(kept, embeddings.padding_idx))
    small = trimmed_config(model.config, kept)
    for name in ("vocab_size", *_TOKEN_IDS):
        if hasattr(model.config, name):
            setattr(model.config, name, getattr(small, name))


#: What transformers knows of a tokenizer beside its JSON.
_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces")


def trim_tokenizer(
    tokenizer: Any, counts: npt.NDArray[np.int64], min_count: int, keep: Sequence[str] = ()
) -> tuple[PreTrainedTokenizerFast, npt.NDArray[np.int64]]:
    """The tokenizer with the pieces that `counts` (pieces,) has at least `min_count` times, and the old id of each.

    Kept besides: special and added tokens, `keep`, and the single characters (or bytes) that kept pieces are made of,
    into which unseen words fall apart. Ids keep their order. ConfigError for a piece in `keep` that does not exist,
    ModelError for a tokenizer of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: Any = (
        json.loads(backend.to_str()) if backend is not None else {"model": {"type": type(tokenizer).__name__}}
    )
    model = content["model"]
    if model["type"] not in _KINDS:
        raise ModelError(
            f"student.vocabulary: a tokenizer of kind {model['type']} cannot be trimmed; known: {', '.join(_KINDS)}"
        )
    ids: dict[str, int] = tokenizer.get_vocab()
    unknown = [piece for piece in keep if piece not in ids]
    if unknown:
        message = f"no piece of this tokenizer: {unknown[0]!r}{near_match(unknown[0], ids)}"
        raise ConfigError.of("student.vocabulary.keep", message, "unknown")
    pieces = {number: piece for piece, number in ids.items()}
    wanted = {pieces[number] for number in np.flatnonzero(counts >= min_count).tolist() if number in pieces}
    wanted |= set(keep) | {token["content"] for token in content["added_tokens"]}
    if model.get("unk_token") in ids:
        wanted.add(model["unk_token"])
    elif isinstance(model.get("unk_id"), int):
        wanted.add(model["vocab"][model["unk_id"]][0])
    wanted |= _bytes_of(model, content, ids)
    wanted = _KINDS[model["type"]](model, wanted, ids)
    kept = np.sort(np.array([ids[piece] for piece in wanted], np.int64))
    new = {int(old): number for number, old in enumerate(kept.tolist())}
    content["model"] = _cut_model(model, wanted, new)
    content["added_tokens"] = [token | {"id": new[token["id"]]} for token in content["added_tokens"]]
    content["post_processor"] = _renumbered(content["post_processor"], new)
    content["padding"] = content["truncation"] = None
    settings = {name: getattr(tokenizer, name) for name in _SETTINGS if hasattr(tokenizer, name)}
    whole = Tokenizer.from_str(json.dumps(content))
    special = tokenizer.special_tokens_map
    cut = PreTrainedTokenizerFast(tokenizer_object=whole, **settings, **special)  # type: ignore[no-untyped-call]
    return cut, kept


def _characters(model: Mapping[str, Any], wanted: set[str], ids: Mapping[str, int]) -> set[str]:
    """WordPiece and Unigram: with the characters of pieces of several, at the start of a word and inside."""
    prefix = model.get("continuing_subword_prefix") or ""
    found = set(wanted)
    for piece in wanted:
        letters = piece.removeprefix(prefix) if prefix else piece
        if len(letters) > 1:
            found.update(part for letter in letters for part in (letter, prefix + letter) if part in ids)
    return found


def _merged(model: Mapping[str, Any], wanted: set[str], ids: Mapping[str, int]) -> set[str]:
    """BPE: with all that kept pieces are merged from, down to single characters."""
    made_of: dict[str, list[tuple[str, str]]] = {}
    for left, right in map(_pair, model["merges"]):
        made_of.setdefault(_product(model, left, right), []).append((left, right))
    found, waiting = set(wanted), list(wanted)
    while waiting:
        for part in {part for pair in made_of.get(waiting.pop(), ()) for part in pair} - found:
            found.add(part)
            waiting.append(part)
    return found & set(ids)


def _as_they_are(model: Mapping[str, Any], wanted: set[str], ids: Mapping[str, int]) -> set[str]:
    return wanted


#: Kind of a tokenizer's model -> what must stay beside the wanted pieces.
_KINDS: Mapping[str, Any] = {
    "WordPiece": _characters,
    "BPE": _merged,
    "Unigram": _characters,
    "WordLevel": _as_they_are,
}


def _bytes_of(model: Mapping[str, Any], content: Mapping[str, Any], ids: Mapping[str, int]) -> set[str]:
    """The alphabet of tokenizers that fall back to bytes, with which no text is unknown."""
    found = {f"<0x{number:02X}>" for number in range(256)} & set(ids) if model.get("byte_fallback") else set()
    if '"ByteLevel"' in json.dumps(content["pre_tokenizer"]):
        from tokenizers.pre_tokenizers import ByteLevel

        found |= set(ByteLevel.alphabet()) & set(ids)
    return found


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _product(model: Mapping[str, Any], left: str, right: str) -> str:
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _cut_model(model: Mapping[str, Any], wanted: set[str], new: Mapping[int, int]) -> dict[str, Any]:
    if model["type"] == "Unigram":
        vocabulary: Any = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        unknown = model["unk_id"]
        return {**model, "vocab": vocabulary, "unk_id": None if unknown is None else new[unknown]}
    vocabulary = {piece: new[number] for piece, number in model["vocab"].items() if number in new}
    if model["type"] != "BPE":
        return {**model, "vocab": vocabulary}
    merges = [
        merge
        for merge in model["merges"]
        if all(part in wanted for part in (*_pair(merge), _product(model, *_pair(merge))))
    ]
    return {**model, "vocab": vocabulary, "merges": merges}


def _renumbered(processor: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with the new ids of its special tokens."""
    if processor is None:
        return None
    found = dict(processor)
    if "processors" in found:
        found["processors"] = [_renumbered(each, new) for each in found["processors"]]
    for name in ("sep", "cls"):
        if name in found:
            found[name] = [found[name][0], new[found[name][1]]]
    if isinstance(found.get("special_tokens"), dict):
        found["special_tokens"] = {
            token: {**entry, "ids": _ids(entry["ids"], new)} for token, entry in found["special_tokens"].items()
        }
    return found


def _ids(old: Iterable[int], new: Mapping[int, int]) -> list[int]:
    return [new[number] for number in old]
