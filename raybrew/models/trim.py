"""A tokenizer with the pieces that a corpus needs, and no others: WordPiece, BPE and Unigram of `tokenizers`.

With all pieces of a corpus kept, each text of it is cut into the same pieces as before:
WordPiece takes the longest piece that fits, which is still there, and no longer one was added. Unigram takes the best
of all ways, which is still there. BPE takes merges in their order; those that make a kept piece are kept with all that
they are made of, so the first one that applies is the same at each step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from raybrew.config.problems import near_match
from raybrew.errors import ConfigError, ModelError

__all__ = ["trim_tokenizer"]

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
