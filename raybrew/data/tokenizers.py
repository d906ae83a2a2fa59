"""Names of what a tokenizer does to a text, and the token types that it may give beside."""

from __future__ import annotations

import copy
import json
from typing import Any

import xxhash

__all__ = ["gives_types", "hash_of", "piece_fingerprint", "tokenizer_fingerprint", "with_types"]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """32 hex digits that name what a tokenizer does to a text: its content, whatever folder it was loaded from."""
    return hash_of({**_pieces(tokenizer), "inputs": sorted(tokenizer.model_input_names)})


def piece_fingerprint(tokenizer: Any) -> str:
    """The same for the pieces alone that it cuts a text into, whatever else its model reads of them.

    BERT's and DistilBERT's tokenizers of one vocabulary make the same pieces; BERT's models read token types too.
    """
    pieces = _pieces(tokenizer)
    pieces["content"].get("settings", {}).pop("model_input_names", None)
    return hash_of(pieces)


def _pieces(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # What the last call asked for is kept there; `encode_rows` asks anew.
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        kwargs: dict[str, Any] = tokenizer.init_kwargs
        settings = {name: str(value) for name, value in kwargs.items() if not name.endswith(("_file", "path"))}
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "settings": settings}
    return {
        "content": content,
        "special_tokens": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "truncation_side": tokenizer.truncation_side,
    }


def gives_types(tokenizer: Any) -> bool:
    """Whether it tells a model the first sentence from the second."""
    return "token_type_ids" in tokenizer.model_input_names


def with_types(tokenizer: Any) -> Any:
    """A tokenizer of the same pieces that gives token types."""
    richer = copy.copy(tokenizer)
    richer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
    return richer


def hash_of(value: Any) -> str:
    """32 hex digits of a plain value."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
