"""Words that may stand in the place of others, by a masked language model (TinyBERT, arXiv 1909.10351, algorithm 1).

A word of one token is masked and guessed. One of several tokens gets the words whose input embeddings are nearest to
the mean of its own, as the model has no one guess for it; the paper looks those up in GloVe.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.errors import ModelError
from raybrew.models.forward import forward
from raybrew.models.loading import max_tokens
from raybrew.signals import LOGITS
from raybrew.tasks.tagging import glues_words

__all__ = ["WordCandidates"]

#: Padded tokens of one forward pass.
_BATCH_TOKENS = 8192
#: Texts are cut here for models without a limit of their own.
_LONGEST = 512


@dataclasses.dataclass(frozen=True)
class _Query:
    """A word that is to be guessed: which text and word, its tokens with the mask in them, and where that stands."""

    text: int
    word: int
    tokens: list[int]
    place: int
    own: int  #: the token that was there


class WordCandidates:
    """Candidates of a masked language model, which must have a fast tokenizer and a mask token."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, top_k: int) -> None:
        self.model = model
        self.model.train(False)
        self.tokenizer: Any = tokenizer
        self.top_k = top_k

    def __call__(
        self, texts: Sequence[str], spans: Sequence[Mapping[int, tuple[int, int]]]
    ) -> list[dict[int, list[str]]]:
        """For each text: word -> at most `top_k` other words, best first. `spans`: word -> its characters (from, to).

        Words beyond the longest text of the model have none. ModelError for a tokenizer without mask token or offsets.
        """
        tokenizer = self.tokenizer
        if tokenizer.mask_token_id is None or not tokenizer.is_fast:
            raise ModelError(
                f"data.augment.model: {type(tokenizer).__name__} has no mask token or no offsets; name a masked "
                "language model with a fast tokenizer"
            )
        limit = max_tokens(self.model.config) or _LONGEST
        encoded = tokenizer(
            list(texts), truncation=True, max_length=limit, return_offsets_mapping=True, return_attention_mask=False
        )
        found: list[dict[int, list[str]]] = [{} for _ in texts]
        queries: list[_Query] = []
        for text, wanted in enumerate(spans):
            tokens, offsets = encoded["input_ids"][text], encoded["offset_mapping"][text]
            for word, (start, end) in wanted.items():
                own = [place for place, (first, last) in enumerate(offsets) if first < end and last > max(start, first)]
                if len(own) == 1:
                    place = own[0]
                    masked = [*tokens[:place], tokenizer.mask_token_id, *tokens[place + 1 :]]
                    queries.append(_Query(text, word, masked, place, tokens[place]))
                elif own:
                    as_written = texts[text][start:end]
                    found[text][word] = self._named(as_written, self._nearest([tokens[place] for place in own]))
        queries.sort(key=lambda query: len(query.tokens))
        start = 0
        while start < len(queries):
            end = start + 1
            while end < len(queries) and (end + 1 - start) * len(queries[end].tokens) <= _BATCH_TOKENS:
                end += 1
            for query, best in zip(queries[start:end], self._guessed(queries[start:end]), strict=True):
                first, last = spans[query.text][query.word]
                found[query.text][query.word] = self._named(texts[query.text][first:last], best)
            start = end
        return found

    def _guessed(self, queries: Sequence[_Query]) -> list[list[int]]:
        """Numbers of words for the masks of a batch, best first."""
        device = self.model.device
        length = max(len(query.tokens) for query in queries)
        tokens = torch.full((len(queries), length), int(self.tokenizer.pad_token_id))
        mask = torch.zeros((len(queries), length), dtype=torch.long)
        for row, query in enumerate(queries):
            tokens[row, : len(query.tokens)] = torch.tensor(query.tokens)
            mask[row, : len(query.tokens)] = 1
        inputs = {"input_ids": tokens, "attention_mask": mask}
        inputs["items"] = torch.tensor([[query.place] for query in queries])
        with torch.inference_mode():
            logits = forward(self.model, {name: value.to(device) for name, value in inputs.items()}, (LOGITS,))[LOGITS]
        own = torch.tensor([[query.own] for query in queries], device=device)
        return self._best(logits[:, 0].float(), own)

    def _nearest(self, tokens: Sequence[int]) -> list[int]:
        """Numbers of the words whose embeddings point in the direction of the mean of those of `tokens`."""
        table = self._embeddings
        mean = functional.normalize(self._weight[list(tokens)].float().mean(dim=0), dim=0)
        best = (table @ mean).topk(min(self.top_k + 1, len(table)))
        return best.indices.tolist()

    def _best(self, logits: Tensor, own: Tensor) -> list[list[int]]:
        ids = self._ids.to(logits.device)
        chosen = logits[:, ids].masked_fill(ids == own, -torch.inf)
        numbers: list[list[int]] = chosen.topk(min(self.top_k + 1, len(ids)), dim=-1).indices.tolist()
        return numbers

    def _named(self, word: str, numbers: Sequence[int]) -> list[str]:
        """Words by number, without `word` itself, and with a capital where it has one."""
        names = [self._names[number] for number in numbers]
        others = [name for name in names if name.casefold() != word.casefold()][: self.top_k]
        return [name.capitalize() if word[:1].isupper() and name.islower() else name for name in others]

    @functools.cached_property
    def _embeddings(self) -> Tensor:
        """Input embeddings of all whole words, of length 1, (words, dim)."""
        return functional.normalize(self._weight[self._ids.to(self._weight.device)].float(), dim=-1)

    @property
    def _weight(self) -> Tensor:
        """Input embeddings of all tokens, (vocabulary, dim)."""
        embeddings: Any = self.model.get_input_embeddings()
        weight: Tensor = embeddings.weight.detach()
        return weight

    @property
    def _ids(self) -> Tensor:
        return self._words[0]

    @property
    def _names(self) -> list[str]:
        return self._words[1]

    @functools.cached_property
    def _words(self) -> tuple[Tensor, list[str]]:
        """Tokens that are a word by themselves, (words,), and how they are written."""
        tokenizer, special = self.tokenizer, set(self.tokenizer.all_special_ids)
        size = len(self._weight)
        ids = sorted(number for number in tokenizer.get_vocab().values() if number not in special and number < size)
        names = [name.strip() for name in tokenizer.batch_decode([[number] for number in ids])]
        written = [name if name.isalnum() else "" for name in names]
        space = " " if glues_words(tokenizer) else ""
        again = tokenizer([space + name for name in written], add_special_tokens=False)["input_ids"]
        kept = [place for place, number in enumerate(ids) if written[place] and again[place] == [number]]
        if not kept:
            raise ModelError("data.augment.model: its vocabulary has no token that is a word by itself")
        return torch.from_numpy(np.array([ids[place] for place in kept], np.int64)), [names[place] for place in kept]
