"""Every kind of signal in every element type, from a teacher into a store and back; and rows that cannot be stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_teacher import CLASSES, WIDTH, make_rows, make_teacher, ragged_rows, small_store, task_of, tree
from torch import Tensor
from transformers import PretrainedConfig

from raybrew.data.rows import row_ids
from raybrew.errors import DataError, ModelError, StoreError
from raybrew.models.forward import forward
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.signals import LOGITS, POOLED, Signal
from raybrew.store import compute as compute_module
from raybrew.store.capture import capture
from raybrew.store.find import check_forms
from raybrew.store.forms.base import Forms
from raybrew.store.forms.dense import ELEMENT_TYPES, ROUNDING, from_int8, to_int8
from raybrew.store.listing import describe
from raybrew.store.reader import Store
from raybrew.store.worker import ShardWorker

HEADS = 2
KINDS = ("hidden", "attention", "attention_probs", "query", "key", "value")
ALL = (LOGITS, POOLED, *(Signal(kind, 2) for kind in KINDS), Signal("hidden", 0))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return make_rows(23)


def run(rows: pa.Table, teacher: ModelSource, root: Path, *request: Signal, skip: bool = False, **store: Any) -> Store:
    return capture(
        rows, task_of(), teacher, request or ALL, small_store(**store), root, "cpu", "fp32", skip_bad_rows=skip
    )


def said_of(teacher: ModelSource, text: str) -> dict[Signal, Tensor]:
    """What the teacher gives for one text alone, without padding."""
    model, tokenizer = load_model(teacher, "classification").eval(), load_tokenizer(teacher)
    encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
    with torch.no_grad():
        return {signal: output[0] for signal, output in forward(model, encoded, ALL).items()}


@pytest.mark.parametrize("element_type", ELEMENT_TYPES)
def test_what_is_gathered_is_what_the_teacher_gives(
    teacher: ModelSource, rows: pa.Table, tmp_path: Path, element_type: str
) -> None:
    store = run(rows, teacher, tmp_path, element_type=element_type)
    assert set(store.signals) == set(ALL)
    wanted = np.array([22, 3, 11, 3])
    positions = store.locate(row_ids(rows)[wanted])
    lengths = store.lengths[positions]
    longest = int(lengths.max())
    assert len(set(lengths.tolist())) > 1
    said = [said_of(teacher, rows.column("text")[row].as_py()) for row in wanted.tolist()]
    shapes = {"logits": (CLASSES,), "pooled": (WIDTH,), "attention": (HEADS, longest, longest)}
    shapes["attention_probs"] = shapes["attention"]
    types = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.float32}
    for signal in ALL:
        found = store.gather(signal, positions)
        assert found.shape == (4, *shapes.get(signal.kind, (longest, WIDTH)))
        assert found.dtype == (torch.float32 if signal == LOGITS else types[element_type])
        share = 0.0 if signal == LOGITS else ROUNDING[element_type]
        for place, length in enumerate(lengths.tolist()):
            expected = said[place][signal]
            if signal.kind in ("attention", "attention_probs"):
                row, rest = found[place, :, :length, :length], found[place].clone()
                rest[:, :length, :length] = 0
                largest = expected.abs().amax(dim=(0, 2))[None, :, None]
            elif signal.layer is not None:
                row, rest = found[place, :length], found[place, length:]
                largest = expected.abs().amax(dim=-1, keepdim=True)
            else:
                row, rest, largest = found[place], torch.zeros(1), expected.abs().amax()
            assert not rest.any()
            bound = share * (largest if element_type == "int8" else expected.abs()) + 1e-5
            assert bool(((row.float() - expected).abs() <= bound).all()), (signal, element_type)
            assert bool(expected.any())
    assert store.dim(Signal("attention", 2)) == HEADS
    assert store.dim(Signal("value", 2)) == WIDTH
    assert store.gather(Signal("attention", 2), positions, longest + 2).shape == (4, HEADS, longest + 2, longest + 2)
    with pytest.raises(ValueError, match="more than length"):
        store.gather(Signal("attention", 2), positions, longest - 1)
    assert store.verify() == ()


@pytest.mark.parametrize("element_type", ["float16", "int8"])
def test_a_teacher_in_bf16_gives_every_signal(
    teacher: ModelSource, rows: pa.Table, tmp_path: Path, element_type: str
) -> None:
    def all_of(precision: str, kept: str) -> Store:
        return capture(rows, task_of(), teacher, ALL, small_store(element_type=kept), tmp_path, "cpu", precision)

    exact, reduced = all_of("fp32", "float32"), all_of("bf16", element_type)
    assert exact.fingerprint != reduced.fingerprint
    positions = np.arange(rows.num_rows)
    for signal in ALL:
        one, other = exact.gather(signal, positions), reduced.gather(signal, positions).float()
        error = float((one - other).abs().max() / one.abs().max())
        assert 0 < error < 0.03, signal


def test_datasets_opens_attention_and_int8(teacher: ModelSource, rows: pa.Table, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    scores, hidden = Signal("attention", 1), Signal("hidden", 1)
    store = run(rows, teacher, tmp_path, scores, hidden, POOLED, element_type="int8")
    length = int(store.lengths[5])
    loaded = datasets.load_from_disk(str(store.path / "signals/attention.01.int8"))[5]
    numbers = np.array(loaded["attention"], np.float32).reshape(HEADS, length, length)
    found = store.gather(scores, np.array([5]))[0].numpy()
    np.testing.assert_allclose(numbers * np.array(loaded["scale"])[None, :, None], found, rtol=1e-6)
    loaded = datasets.load_from_disk(str(store.path / "signals/hidden.01.int8"))[5]
    found = store.gather(hidden, np.array([5]))[0].numpy()
    np.testing.assert_allclose(np.array(loaded["hidden"]) * np.array(loaded["scale"])[:, None], found, rtol=1e-6)
    assert len(datasets.load_from_disk(str(store.path / "signals/pooled.int8"))) == 23
    assert len(list((store.path / "index").glob("*.arrow"))) == 1


def test_masked_scores_are_not_kept_in_int8() -> None:
    config = PretrainedConfig()
    config.model_type = "modernbert"
    with pytest.raises(ModelError, match=r"attention.02 cannot be kept in int8: scores of modernbert models"):
        check_forms(config, (LOGITS, Signal("attention", 2)), Forms("int8"))
    check_forms(config, (LOGITS, Signal("attention_probs", 2)), Forms("int8"))
    check_forms(config, (LOGITS, Signal("attention", 2)), Forms("float16"))
    config.model_type = "bert"
    check_forms(config, (LOGITS, Signal("attention", 2)), Forms("int8"))


def test_int8_has_a_scale_for_each_token() -> None:
    values = torch.tensor([[1.0, -127.0, 3.4], [0.0, 0.0, 0.0], [1e-3, 2e-3, -4e-3]])
    kept, scales = to_int8(values, (1,))
    assert (kept.dtype, scales.tolist()) == (torch.int8, pytest.approx([1.0, 0.0, 4e-3 / 127]))
    assert kept.tolist() == [[1, -127, 3], [0, 0, 0], [32, 64, -127]]
    torch.testing.assert_close(from_int8(kept, scales[:, None])[2], values[2], atol=2e-5, rtol=0)
    assert to_int8(torch.tensor([[1.0, float("nan")]]), (1,))[1].isnan().all()
    assert to_int8(torch.tensor([[1.0, float("inf")]]), (1,))[1].isinf().all()


def test_three_match_sets_over_different_layers_are_served_by_one_store(
    teacher: ModelSource, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep asks for the union over its space: the teacher sees each row once."""
    sets = (
        (LOGITS, Signal("hidden", 1), Signal("hidden", 2)),
        (LOGITS, Signal("attention", 2), Signal("hidden", 0)),
        (LOGITS, Signal("query", 2), Signal("key", 2), Signal("value", 2), Signal("hidden", 2)),
    )
    passed = 0
    real = compute_module.forward

    def counted(model: Any, inputs: Any, request: Any) -> Any:
        nonlocal passed
        passed += len(inputs["input_ids"])
        return real(model, inputs, request)

    monkeypatch.setattr(compute_module, "forward", counted)
    union = {signal for wanted in sets for signal in wanted}
    store = run(rows, teacher, tmp_path, *union)
    assert passed == rows.num_rows
    for wanted in sets:
        again = run(rows, teacher, tmp_path, *wanted)
        assert again.path == store.path
        assert all(again.has(signal, again.locate(row_ids(rows))) for signal in wanted)
    assert passed == rows.num_rows
    run(rows, teacher, tmp_path, *union, Signal("attention", 1))
    assert passed == 2 * rows.num_rows  # another layer is another pass, of that layer alone
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A teacher whose embedding of `mati` is far too large for float16, and that of `sune` NaN."""
    source = make_teacher(tmp_path_factory.mktemp("touchy"), seed=1)
    model, tokenizer = load_model(source, "classification"), load_tokenizer(source)
    words = model.bert.embeddings.word_embeddings.weight.data
    words[tokenizer.convert_tokens_to_ids("sune")] = float("nan")
    model.bert.embeddings.LayerNorm.weight.data[0] = 15_000.0
    # The first number of a token is large for `mati` only: elsewhere it is near the mean.
    words[:, 0] = words.mean(dim=1) if not torch.isnan(words).any() else words.nanmean(dim=1)
    words[tokenizer.convert_tokens_to_ids("mati")] = 0.0
    words[tokenizer.convert_tokens_to_ids("mati"), 0] = 50.0
    model.save_pretrained(source.model)
    return source


POISON = ["kola rene", "suti mati kola", "tila", "rero sune", "tine kone", "mala reti", "kone tiro"]


@pytest.mark.parametrize("element_type", ["float16", "int8", "bfloat16"])
def test_poison_rows_are_set_aside_and_named(touchy: ModelSource, tmp_path: Path, element_type: str) -> None:
    rows, hidden = ragged_rows(POISON), Signal("hidden", 0)
    ids = [value.hex() for value in rows.column("id").to_pylist()]
    store = run(rows, touchy, tmp_path, LOGITS, hidden, skip=True, element_type=element_type, rows_per_shard=3)
    expected = {ids[3]: f"{LOGITS}: the teacher gives NaN"}
    assert store.set_aside([LOGITS]) == expected
    expected[ids[3]] = f"{hidden}: the teacher gives NaN"
    if element_type == "float16":
        expected[ids[1]] = f"{hidden}: overflows float16"
    assert store.set_aside([hidden]) == expected
    assert describe(store)["set_aside"][store.kept(hidden).folder] == expected
    good = store.locate(row_ids(rows)[[0, 2, 4, 5, 6]])
    assert bool(torch.isfinite(store.gather(hidden, good)).all())
    bad = store.gather(hidden, store.locate(row_ids(rows)[[3]]))
    assert not bad.any()
    # Nothing is missing, so nothing is computed again; and other readers are told the same.
    before = tree(store.path)
    again = run(rows, touchy, tmp_path, LOGITS, hidden, skip=True, element_type=element_type)
    assert tree(again.path) == before
    assert Store.open(store.path).set_aside([hidden]) == expected


def test_poison_rows_are_an_error_that_names_them(touchy: ModelSource, tmp_path: Path) -> None:
    rows = ragged_rows(POISON)
    ids = [value.hex() for value in rows.column("id").to_pylist()]
    with pytest.raises(StoreError) as caught:
        run(rows.take([0, 1, 2, 4]), touchy, tmp_path, Signal("hidden", 0))
    message = str(caught.value)
    assert "hidden.00: 1 of " in message
    assert "overflow float16; set store.element_type=bfloat16 or float32" in message
    assert f"in row {ids[1]} ('suti mati kola')" in message
    assert message.endswith("data.on_bad_row=skip sets such rows aside")
    with pytest.raises(StoreError, match=rf"logits: the teacher gives 3 of 21 values .* {ids[3]} \('rero sune'\)"):
        run(rows, touchy, tmp_path, LOGITS)


def test_when_most_rows_are_bad_it_is_no_matter_of_rows(touchy: ModelSource, tmp_path: Path) -> None:
    rows = ragged_rows([f"sune {number}" for number in range(5)] + POISON[:3])
    with pytest.raises(StoreError, match=r"5 of 8 rows of a shard cannot be stored, .* logits: the teacher gives NaN"):
        run(rows, touchy, tmp_path, LOGITS, skip=True)


def test_rows_that_cannot_be_tokenised_are_set_aside(
    teacher: ModelSource, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(task_of()).encode
    third, fourth = (rows.column("text")[number].as_py() for number in (3, 4))

    def fragile(self: Any, tokenizer: Any, content: Any) -> Any:
        if third in content["text"]:
            raise ValueError("no such byte")
        encoded = real(self, tokenizer, content)
        for values in encoded.values():
            values[:] = [[] if text == fourth else row for row, text in zip(values, content["text"], strict=True)]
        return encoded

    monkeypatch.setattr(type(task_of()), "encode", fragile)
    hidden = Signal("hidden", 1)
    with pytest.raises(DataError, match=r"row [0-9a-f]{32}: the tokenizer of the teacher fails \(ValueError: no such"):
        run(rows, teacher, tmp_path, LOGITS)
    store = run(rows, teacher, tmp_path, LOGITS, hidden, Signal("attention", 1), skip=True)
    ids = [value.hex() for value in rows.column("id").to_pylist()]
    assert store.set_aside([hidden]) == {
        ids[3]: "the tokenizer of the teacher fails (ValueError: no such byte) on",
        ids[4]: "the tokenizer of the teacher makes no tokens of",
    }
    assert store.lengths[3:6].tolist()[:2] == [0, 0]
    positions = store.locate(row_ids(rows))
    reference = run(rows.take([0, 1, 2, *range(5, 23)]), teacher, tmp_path / "other", LOGITS)
    kept = [0, 1, 2, *range(5, 23)]
    torch.testing.assert_close(
        store.gather(LOGITS, positions[kept]),
        reference.gather(LOGITS, reference.locate(row_ids(rows)[kept])),
        atol=2e-6,
        rtol=0,
    )
    # A shard that holds nothing but such rows has their zeros, too.
    alone = run(rows.take([3, 4]), teacher, tmp_path / "alone", LOGITS, Signal("attention", 2), skip=True)
    assert set(alone.set_aside([LOGITS])) == {ids[3], ids[4]}
    assert alone.gather(LOGITS, np.array([0, 1])).tolist() == [[0.0] * CLASSES] * 2
    assert alone.dim(Signal("attention", 2)) == HEADS
    # Another layer later: the rows without tokens stay what they are.
    later = run(rows, teacher, tmp_path, Signal("hidden", 2), skip=True)
    assert set(later.set_aside([Signal("hidden", 2)])) == {ids[3], ids[4]}


def test_a_row_too_large_for_memory_is_set_aside(
    teacher: ModelSource, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compute_module.forward

    def small_memory(model: Any, inputs: Any, request: Any) -> Any:
        if inputs["input_ids"].shape[1] >= limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, inputs, request)

    encoded = load_tokenizer(teacher)(rows.column("text").to_pylist())["input_ids"]
    limit = max(len(tokens) for tokens in encoded)
    too_long = [number for number, tokens in enumerate(encoded) if len(tokens) == limit]
    assert 0 < len(too_long) < 4
    monkeypatch.setattr(compute_module, "forward", small_memory)
    store = run(rows, teacher, tmp_path, LOGITS, skip=True)
    ids = [value.hex() for value in rows.column("id").to_pylist()]
    reason = f"a single row of {limit} tokens does not fit into the memory of cpu"
    assert store.set_aside([LOGITS]) == {ids[number]: reason for number in too_long}


def test_the_index_is_mapped_checked_and_made_anew(teacher: ModelSource, rows: pa.Table, tmp_path: Path) -> None:
    store = run(rows, teacher, tmp_path, LOGITS)
    (file,) = (store.path / "index").glob("*.arrow")
    order = np.random.default_rng(0).permutation(23)
    assert store.locate(row_ids(rows)[order]).tolist() == order.tolist()
    positions = store.locate_all(store.examples.flat("id"))
    assert positions[np.array([4, 2])].tolist() == [4, 2]
    assert len(positions) == 23
    content = file.read_bytes()
    file.write_bytes(content[:-80] + content[-80:][::-1])
    assert Store.open(store.path).verify() == (f"index/{file.name} holds other bytes than were written",)
    swapped = bytearray(content)
    first, second = content.index(row_ids(rows)[0].tobytes()), content.index(row_ids(rows)[1].tobytes())
    swapped[first : first + 16], swapped[second : second + 16] = (
        content[second : second + 16],
        content[first : first + 16],
    )
    file.write_bytes(swapped)
    assert Store.open(store.path).locate(row_ids(rows)[order]).tolist() == order.tolist(), (
        "a damaged index is made anew"
    )
    file.unlink(missing_ok=True)
    assert Store.open(store.path).locate(row_ids(rows)[order]).tolist() == order.tolist()
    assert Store.open(store.path).verify() == (f"index/{file.name} is missing",)
    more = run(pa.concat_tables([rows, make_rows(5, seed=3)]), teacher, tmp_path, LOGITS)
    assert len(list((store.path / "index").glob("*.arrow"))) == 1
    assert more.locate(row_ids(rows)[order]).tolist() == order.tolist()
    assert more.verify() == ()


def test_workers_are_told_how_many_rows_were_set_aside(
    touchy: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    real = ShardWorker.run
    monkeypatch.setattr(ShardWorker, "run", lambda self, task: results.append(real(self, task)) or results[-1])
    run(ragged_rows(POISON), touchy, tmp_path, LOGITS, Signal("hidden", 0), skip=True)
    assert [result.set_aside for result in results] == [2]
