"""Teacher outputs of a shard against a loop over single rows, memory that runs out, values that overflow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_teacher import CLASSES, WIDTH, make_rows, make_teacher, ragged_rows, task_of

from raybrew.errors import DataError, StoreError
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.signals import LOGITS, Signal
from raybrew.store import compute
from raybrew.store.compute import Teacher, cut_batches
from raybrew.store.fingerprint import hashes_of, store_parts
from raybrew.store.forms.base import Forms
from raybrew.store.manifest import fingerprint_of_parts

REQUEST = (LOGITS, Signal("hidden", 0), Signal("hidden", 2))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


def make(source: ModelSource, pair: bool = False, **changes: Any) -> Teacher:
    teacher = Teacher(
        load_model(source, "classification").eval(),
        load_tokenizer(source),
        task_of(pair=pair),
        torch.device("cpu"),
        "fp32",
        Forms("float32"),
        64,
    )
    return dataclasses.replace(teacher, **changes)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), budget=st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int32)
    batches = cut_batches(array, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= budget
    longest = [int(array[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("pair", [False, True])
def test_outputs_are_those_of_single_rows(source: ModelSource, pair: bool) -> None:
    teacher = make(source, pair)
    rows = make_rows(23, pair=pair)
    examples = teacher.encode(rows)
    tables = teacher.compute(examples, REQUEST)
    assert list(tables) == sorted(REQUEST)
    texts = [rows.column(name).to_pylist() for name in rows.column_names if name.startswith("text")]
    lengths = set()
    for index in range(23):
        pair_of = [text[index] for text in texts]
        encoded = teacher.tokenizer(*pair_of, return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            outputs = teacher.model(**encoded, output_hidden_states=True)
        assert examples.column("input_ids")[index].as_py() == encoded["input_ids"][0].tolist()
        assert examples.column("token_type_ids")[index].as_py() == encoded["token_type_ids"][0].tolist()
        stored = np.array(tables[LOGITS].column("logits")[index].as_py())
        np.testing.assert_allclose(stored, outputs.logits[0].numpy(), atol=2e-6)
        for layer in (0, 2):
            stored = np.array(tables[Signal("hidden", layer)].column("hidden")[index].as_py())
            assert stored.shape == (encoded["input_ids"].shape[1], WIDTH)
            np.testing.assert_allclose(stored, outputs.hidden_states[layer][0].numpy(), atol=2e-6)
        lengths.add(encoded["input_ids"].shape[1])
    assert len(lengths) > 3
    assert tables[LOGITS].column("logits").type.list_size == CLASSES


def test_batches_of_any_size_give_the_same(source: ModelSource) -> None:
    rows = make_rows(23)
    tables = [
        teacher.compute(teacher.encode(rows), REQUEST)
        for teacher in (make(source, batch_tokens=budget) for budget in (1, 64, 10_000))
    ]
    for signal in REQUEST:
        values = [np.concatenate([np.ravel(row) for row in table[signal].column(0).to_pylist()]) for table in tables]
        np.testing.assert_allclose(values[0], values[1], atol=2e-6)
        np.testing.assert_allclose(values[0], values[2], atol=2e-6)


def test_bfloat16_bits_come_back(source: ModelSource) -> None:
    rows = make_rows(5)
    exact, kept = make(source), make(source, forms=Forms("bfloat16"))
    signal = Signal("hidden", 2)
    full = exact.compute(exact.encode(rows), [signal])[signal].column("hidden").combine_chunks().values.values
    bits = kept.compute(kept.encode(rows), [signal])[signal].column("hidden").combine_chunks().values.values
    assert str(bits.type) == "uint16"
    expected = torch.from_numpy(full.to_numpy().copy()).to(torch.bfloat16)
    found = torch.from_numpy(bits.to_numpy().view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(found, expected)


def test_reduced_precision_runs_the_forward_in_it(source: ModelSource) -> None:
    rows = make_rows(5)
    exact, reduced = make(source), make(source, precision="bf16")
    full = np.array(exact.compute(exact.encode(rows), [LOGITS])[LOGITS].column("logits").to_pylist())
    rounded = np.array(reduced.compute(reduced.encode(rows), [LOGITS])[LOGITS].column("logits").to_pylist())
    assert 0 < np.abs(full - rounded).max() < 0.05


def test_overflow_is_counted_and_named(tmp_path: Path) -> None:
    loud = make_teacher(tmp_path, loud=1e5)
    teacher = make(loud, forms=Forms("float16"))
    examples = teacher.encode(make_rows(5))
    with pytest.raises(StoreError) as caught:
        teacher.compute(examples, REQUEST)
    message = str(caught.value)
    total = sum(len(row) for row in examples.column("input_ids").to_pylist()) * WIDTH
    assert message.startswith("hidden.00: ")
    assert f" of {total} values overflow float16; set store.element_type=bfloat16 or float32" in message
    assert "hidden.02" not in message
    wide = make(loud, forms=Forms("bfloat16")).compute(examples, REQUEST)
    assert set(wide) == set(REQUEST)


def test_a_broken_teacher_is_named(source: ModelSource) -> None:
    teacher = make(source)
    teacher.model.classifier.bias.data[1] = float("nan")  # type: ignore[union-attr, index, operator]
    with pytest.raises(StoreError, match=r"logits: the teacher gives 5 of 15 values that are NaN or infinite"):
        teacher.compute(teacher.encode(make_rows(5)), [LOGITS])


def test_batches_are_halved_when_memory_runs_out(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sizes = make_rows(23), []
    plain = make(source, batch_tokens=10_000)
    expected = plain.compute(plain.encode(rows), REQUEST)
    real = compute.forward

    def small_memory(model: Any, inputs: Any, request: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, inputs, request)

    monkeypatch.setattr(compute, "forward", small_memory)
    teacher = make(source, batch_tokens=10_000)
    found = teacher.compute(teacher.encode(rows), REQUEST)
    assert sizes[:3] == [23, 11, 5]
    assert sum(size for size in sizes if size <= 6) == 23
    assert teacher.batch_tokens < 10_000
    assert teacher.notes[0] == "23 rows did not fit into the memory of cpu: store.batch_tokens is now 5000"
    for signal in REQUEST:
        for one, other in zip(expected[signal].column(0).to_pylist(), found[signal].column(0).to_pylist(), strict=True):
            np.testing.assert_allclose(np.array(one), np.array(other), atol=2e-6)


def test_a_row_that_never_fits_and_other_errors_end_it(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(compute, "forward", full)
    teacher = make(source)
    with pytest.raises(StoreError, match=r"a single row of \d+ tokens does not fit into the memory of cpu"):
        teacher.compute(teacher.encode(make_rows(3)), [LOGITS])

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(compute, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        teacher.compute(teacher.encode(make_rows(3)), [LOGITS])


def test_a_text_without_tokens_is_named(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = make(source)
    real = type(teacher.task).encode

    def forgetful(self: Any, tokenizer: Any, rows: Any) -> Any:
        return {
            name: [tokens[:0] if text == "mane" else tokens for tokens, text in zip(values, rows["text"], strict=True)]
            for name, values in real(self, tokenizer, rows).items()
        }

    monkeypatch.setattr(type(teacher.task), "encode", forgetful)
    with pytest.raises(DataError, match="makes no tokens of 'mane'"):
        teacher.encode(ragged_rows(["kola", "mane"]))


def test_the_fingerprint_follows_content_only(source: ModelSource, tmp_path: Path) -> None:
    def name(source: ModelSource, precision: str = "fp32", max_length: int = 32, pair: bool = False) -> str:
        model, tokenizer = load_model(source, "classification"), load_tokenizer(source)
        return fingerprint_of_parts(store_parts(hashes_of(model), tokenizer, task_of(max_length, pair), precision))

    base = name(source)
    assert len(base) == 32
    model, tokenizer = load_model(source, "classification"), load_tokenizer(source)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.config.label2id = {"a": 0, "b": 1, "c": 2}
    model.save_pretrained(tmp_path / "copy", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "copy")
    assert len(list((tmp_path / "copy").glob("*.safetensors"))) > 1
    assert name(ModelSource(str(tmp_path / "copy"))) == base

    others = {name(source, "bf16"), name(source, max_length=31), name(source, pair=True)}
    next(iter(model.parameters())).data[3, 3] += 1e-3
    model.save_pretrained(tmp_path / "weights")
    tokenizer.save_pretrained(tmp_path / "weights")
    others.add(name(ModelSource(str(tmp_path / "weights"))))
    model = load_model(source, "classification")
    model.config.layer_norm_eps = 1e-5
    model.save_pretrained(tmp_path / "config")
    tokenizer.save_pretrained(tmp_path / "config")
    others.add(name(ModelSource(str(tmp_path / "config"))))
    load_model(source, "classification").save_pretrained(tmp_path / "tokens")
    tokenizer.add_tokens(["kola"])  # one that there is, as a token that is never cut
    tokenizer.save_pretrained(tmp_path / "tokens")
    others.add(name(ModelSource(str(tmp_path / "tokens"))))
    assert len(others | {base}) == 7
