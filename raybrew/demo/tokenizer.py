"""A BERT tokenizer built from the demo's own texts: whole words, then single characters for words it has not seen."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from transformers import BertTokenizerFast  # type: ignore[attr-defined]

__all__ = ["build_tokenizer"]

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = string.ascii_lowercase + string.digits


def build_tokenizer(texts: Iterable[str], folder: Path, max_length: int) -> BertTokenizerFast:
    """Builds a lower-casing WordPiece tokenizer of at most `max_length` tokens and saves it for `AutoTokenizer`.

    The vocabulary is counted, not learnt: special tokens, punctuation and characters (also as `##` pieces), then the
    words of `texts` by falling frequency, ties by spelling. So it depends on the multiset of texts alone, and an
    unseen word becomes characters rather than [UNK].
    """
    empty = BertTokenizerFast().backend_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in empty.pre_tokenizer.pre_tokenize_str(empty.normalizer.normalize_str(text)))
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    pieces = [*_SPECIAL_TOKENS, *string.punctuation, *_CHARACTERS, *(f"##{piece}" for piece in _CHARACTERS)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*pieces, *by_frequency]))}
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer
