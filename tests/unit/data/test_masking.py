"""Which tokens of a text are hidden: how many, which never, the same again for the same seed, epoch and example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from raybrew.config import MaskedLMConfig
from raybrew.data.encoded import EncodedRows, encode_rows
from raybrew.data.loader import collate
from raybrew.data.masking import MaskedRows, as_shown
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.models.forward import forward
from raybrew.signals import LOGITS, Signal
from raybrew.tasks.base import Task, build_task
from raybrew.tasks.values import example_id
from tests.task_helpers import byte_level_tokenizer

#: Words of the vocabulary, and others that are cut into pieces of one character.
WORDS = ("red", "green", "blue", "tree", "house", "zxq", "qqzz")


def rows_of(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array([example_id((text,)) for text in texts], pa.binary(16)),
            "text": texts,
            "label": pa.array([[] for _ in texts], pa.list_(pa.int32())),
        }
    )


def encoded(folder: Path, texts: list[str], **settings: Any) -> tuple[Task, Any, EncodedRows]:
    tokenizer = build_tokenizer([" ".join(WORDS[:5])] * 2, folder / "tokenizer", max_length=64)
    task = build_task(MaskedLMConfig(max_length=32, **settings))
    return task, tokenizer, encode_rows(rows_of(texts), task, tokenizer, folder / "cache")


def some_texts(count: int = 60, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(count)]


def shown(task: Task, tokenizer: Any, rows: EncodedRows, seed: int = 0, epoch: int = 0) -> MaskedRows:
    found = as_shown(rows, task, tokenizer, seed, epoch)
    assert isinstance(found, MaskedRows)
    return found


@pytest.mark.parametrize("whole_words", [False, True])
def test_hidden_tokens_are_ordinary_ones_as_many_as_asked_for(tmp_path: Path, whole_words: bool) -> None:
    task, tokenizer, rows = encoded(
        tmp_path, [*some_texts(), "日 [MASK] [SEP]"], whole_words=whole_words, mask_rate=0.3
    )
    every = np.arange(rows.num_rows)
    model = shown(task, tokenizer, rows)
    plain, targets = rows.gather_padded(every, tokenizer.pad_token_id), model.targets(every)
    read = model.gather_padded(every, tokenizer.pad_token_id)
    special = set(tokenizer.all_special_ids)
    for row in range(rows.num_rows):
        tokens = plain["input_ids"][row].tolist()
        items = targets["items"][row][targets["item_mask"][row] == 1].tolist()
        ordinary = [place for place, token in enumerate(tokens) if token not in special]
        assert set(items) <= set(ordinary)
        assert targets["labels"][row][: len(items)].tolist() == [tokens[item] for item in items]
        assert (targets["labels"][row][len(items) :] == -1).all()
        least = max(1, round(0.3 * len(ordinary))) if ordinary else 0
        if whole_words:
            words = [0]
            for place in range(1, len(tokens)):
                continues = tokenizer.convert_ids_to_tokens(tokens[place]).startswith("##")
                words.append(words[-1] if continues else place)
            hidden = {words[item] for item in items}
            assert set(items) == {place for place in ordinary if words[place] in hidden}
            sizes = [sum(words[place] == word for place in ordinary) for word in hidden]
            assert least <= len(items) < least + max(sizes, default=1)
        else:
            assert len(items) == least
        untouched = [place for place in range(len(tokens)) if place not in items]
        assert read["input_ids"][row][untouched].tolist() == [tokens[place] for place in untouched]
    assert targets["item_mask"][-1].sum() == 0, "a text of special tokens alone has nothing to guess"


def test_what_replaces_hidden_tokens(tmp_path: Path) -> None:
    task, tokenizer, rows = encoded(tmp_path, some_texts(800), mask_rate=0.5)
    every = np.arange(rows.num_rows)
    model = shown(task, tokenizer, rows)
    targets, read = model.targets(every), model.gather_padded(every, 0)["input_ids"]
    real = targets["item_mask"] == 1
    now, before = np.take_along_axis(read, targets["items"], axis=1)[real], targets["labels"][real]
    masked, kept = now == tokenizer.mask_token_id, now == before
    assert masked.mean() == pytest.approx(0.8, abs=0.03)
    assert kept.mean() == pytest.approx(0.1, abs=0.03)
    random = now[~masked & ~kept]
    assert not set(random.tolist()) & set(tokenizer.all_special_ids)
    assert len(set(random.tolist())) > 40, "any token may come"


def test_masks_depend_on_seed_epoch_and_content_alone(tmp_path: Path) -> None:
    texts = some_texts()
    task, tokenizer, rows = encoded(tmp_path, texts)
    every = np.arange(rows.num_rows)
    first = shown(task, tokenizer, rows).gather_padded(every, 0)["input_ids"]
    again = shown(task, tokenizer, rows)
    # In another order, one at a time and padded further.
    for row in every[::-1]:
        alone = again.gather_padded(np.array([row]), 0, 40)["input_ids"][0]
        assert alone[: first.shape[1]].tolist() == first[row].tolist()
    backwards = encode_rows(rows_of(texts[::-1]), task, tokenizer, tmp_path / "cache")
    other = shown(task, tokenizer, backwards).gather_padded(every, 0)["input_ids"]
    assert (other[::-1] == first).all()
    for seed, epoch in ((1, 0), (0, 1), (0, -1)):
        changed = shown(task, tokenizer, rows, seed, epoch).gather_padded(every, 0)["input_ids"]
        assert (changed != first).any(axis=1).mean() > 0.5


def test_long_texts_are_cut_between_words_and_nothing_is_lost(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(tmp_path)
    task = build_task(MaskedLMConfig(max_length=12))
    text = "the old man and the sea Paris London 北京 " * 6
    units = task.units(rows_of([text, "short"]), (tokenizer,))
    parts = units.column("text").to_pylist()
    assert "".join(parts[:-1]) == text
    assert parts[-1] == "short"
    assert units.column("row").to_pylist() == [0] * (len(parts) - 1) + [1]
    columns = task.encode(tokenizer, {"text": parts})
    assert max(map(len, columns["input_ids"])) <= 12
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [token for tokens in columns["input_ids"][:-1] for token in tokens[1:-1]] == whole


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(intermediate_size=32),
        RobertaConfig(intermediate_size=32),
        DistilBertConfig(hidden_dim=32),
        ElectraConfig(intermediate_size=32, embedding_size=8),
        DebertaV2Config(intermediate_size=32),
        ModernBertConfig(intermediate_size=32),
    ],
    ids=lambda config: config.model_type,
)
def test_logits_at_hidden_tokens_are_those_of_the_whole_model(config: Any) -> None:
    for name, value in (("vocab_size", 60), ("hidden_size", 16), ("num_hidden_layers", 2), ("num_attention_heads", 2)):
        setattr(config, name, value)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = config.cls_token_id = config.sep_token_id = 1
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    tokens = torch.randint(2, 60, (3, 9))
    items = torch.tensor([[1, 4], [8, 0], [3, 3]])
    mask = torch.ones_like(tokens)
    last = Signal("hidden", 2)
    seen: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, output: seen.append(tuple(output.shape)))
    with torch.no_grad():
        whole = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        found = forward(model, {"input_ids": tokens, "attention_mask": mask, "items": items}, [LOGITS, last])
    torch.testing.assert_close(found[LOGITS], whole.logits.gather(1, items.unsqueeze(-1).expand(-1, -1, 60)))
    torch.testing.assert_close(found[last], whole.hidden_states[-1])
    assert not seen or seen[1] == (3, 2, 60), "no logits of other tokens are computed"


def test_losses_and_outputs_are_those_of_transformers_on_the_same_masks(tmp_path: Path) -> None:
    task, tokenizer, rows = encoded(tmp_path, [*some_texts(20), "[SEP]"], mask_rate=0.4)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModelForMaskedLM.from_config(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    batch = collate(np.arange(rows.num_rows), shown(task, tokenizer, rows), tokenizer.pad_token_id, None).inputs
    logits = forward(model, batch, [LOGITS])[LOGITS]
    labels = torch.full_like(batch["input_ids"], -100)
    real = batch["item_mask"] == 1
    where = torch.arange(len(labels)).unsqueeze(1).expand_as(batch["items"])
    labels[where[real], batch["items"][real]] = batch["labels"][real]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    theirs = model(**inputs, labels=labels)
    term = task.head.label_loss(logits, batch)
    mean = term.sum / term.count
    torch.testing.assert_close(mean, theirs.loss)
    assert int(term.count) == int(task.head.num_labelled(batch)) == int((labels != -100).sum())
    assert term.count > 20
    ours, reference = (torch.autograd.grad(loss, list(model.parameters())) for loss in (mean, theirs.loss))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other)
    found = task.head.outputs(logits, batch)[real]
    best = theirs.logits[labels != -100].log_softmax(-1).topk(5)
    torch.testing.assert_close(found[:, 2:7], best.values)
    assert (found[:, 7:].long() == best.indices).all()
    assert float(found.detach()[:, 0].mean()) == pytest.approx(-float(theirs.loss.detach()), rel=1e-5)
    assert (found[:, 1] == (best.indices[:, 0] == labels[labels != -100])).all()
    assert int(task.head.compared(logits, logits, batch).mask.sum()) == int(term.count)
