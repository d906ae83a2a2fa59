"""A form of a signal that comes from outside, top-k of logits: nothing of the package changes for it."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import raybrew
from raybrew.cli.main import app
from raybrew.config.distill import DistillConfig
from raybrew.config.loading import build_experiment
from raybrew.data.loader import MicroBatch
from raybrew.data.rows import row_ids
from raybrew.distillers.signal_terms import KDOnSignals
from raybrew.distillers.teachers import LiveTeacher, StoredSignals
from raybrew.errors import ConfigError, ModelError, StoreError
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.signals import LOGITS, Signal
from raybrew.store.capture import capture
from raybrew.store.compute import Teacher
from raybrew.store.estimate import Amounts, Widths, estimate_bytes
from raybrew.store.forms.base import Forms, StoredAs
from raybrew.store.forms.columns import Collected, encoded
from raybrew.store.listing import describe
from raybrew.store.live import compare_live
from raybrew.store.prune import PruneRules, plan_prune, prune_stores
from raybrew.store.reader import Store
from raybrew.tasks.heads import ClassHead
from tests.tiny_teacher import CLASSES, WIDTH, make_rows, make_teacher, small_store, task_of

K = 2
FORM = """
import dataclasses
import math

import numpy as np
import pyarrow as pa
import torch

from raybrew.store.forms.base import Column

K = 2


@dataclasses.dataclass
class BestLogits:
    ids: torch.Tensor
    logp: torch.Tensor
    rest: torch.Tensor
    classes: int

    def to(self, device, *, non_blocking=False):
        move = lambda tensor: tensor.to(device, non_blocking=non_blocking)
        return BestLogits(move(self.ids), move(self.logp), move(self.rest), self.classes)

    def pin_memory(self):
        return BestLogits(self.ids.pin_memory(), self.logp.pin_memory(), self.rest.pin_memory(), self.classes)

    def to_dense(self):
        each = self.rest.float() - math.log(self.classes - K)
        dense = each.unsqueeze(-1).repeat(*[1] * each.dim(), self.classes)
        return dense.scatter(-1, self.ids, self.logp.float())


class TopK:
    checked = "logp"

    def __init__(self, signal, element_type):
        self.signal = signal

    @staticmethod
    def element_type_of(signal, wanted):
        return "float16"

    def problem(self, model_type):
        return None if self.signal.kind == "logits" else f"{self.signal}: top-k is for logits"

    def columns(self, dim):
        return {"ids": Column(pa.uint16(), K), "logp": Column(pa.float16(), K), "rest": Column(pa.float32())}

    def encode(self, output):
        logp = output.float().log_softmax(dim=-1)
        best = logp.topk(K, dim=-1)
        rest = logp.scatter(-1, best.indices, -math.inf).logsumexp(dim=-1)
        return {"ids": best.indices.to(torch.int32), "logp": best.values.half(), "rest": rest}

    def decode(self, columns, dim):
        tensors = [torch.from_numpy(columns[name]) for name in ("logp", "rest")]
        return BestLogits(torch.from_numpy(columns["ids"].astype(np.int64)), *tensors, dim)

    def live(self, output):
        columns = self.encode(output)
        return BestLogits(columns["ids"].long(), columns["logp"], columns["rest"], output.shape[-1])

    def rounding(self, exact):
        return exact.abs() * 2.0**-10

    def remedy(self):
        return "nothing helps"
"""


@pytest.fixture(scope="module")
def form(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its name; the module lies in the folder raybrew runs in, which is on no path."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "form_from_outside.py").write_text(FORM, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield "form_from_outside:TopK"
    sys.modules.pop("form_from_outside", None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return make_rows(40)


@pytest.fixture(scope="module")
def store(form: str, teacher: ModelSource, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = small_store(forms={"logits": form}, element_type="float32")
    return capture(rows, task_of(), teacher, [LOGITS], config, tmp_path_factory.mktemp("store"), "cpu", "fp32")


@pytest.fixture(scope="module")
def wanted(teacher: ModelSource, rows: pa.Table) -> np.ndarray:
    """Log-probabilities of every row, float64 (rows, classes), one row at a time."""
    model, tokenizer = load_model(teacher, "classification").eval(), load_tokenizer(teacher)
    logits = []
    for text in rows.column("text").to_pylist():
        with torch.no_grad():
            logits.append(model(**tokenizer(text, return_tensors="pt")).logits[0].double().numpy())
    exact = np.stack(logits)
    return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))


def test_a_shard_holds_its_columns(store: Store, form: str, wanted: np.ndarray) -> None:
    folder = f"signals/logits.float16@{form.replace(':', '-')}"
    assert list(store.manifest["signals"]) == [folder]
    entry = {"signal": "logits", "element_type": "float16", "dim": CLASSES, "rows": 40, "form": form}
    assert store.manifest["signals"][folder] == entry
    with pa.memory_map(str(store.path / folder / "data-00002.arrow")) as file:
        table = pa.ipc.open_stream(file).read_all()
    types = [pa.list_(pa.uint16(), K), pa.list_(pa.float16(), K), pa.float32()]
    assert table.schema.names == ["ids", "logp", "rest"]
    assert table.schema.types == types
    naive = np.argsort(-wanted, axis=1)[20:30]
    assert table.column("ids").to_pylist() == naive[:, :K].tolist()
    rest = np.exp(np.take_along_axis(wanted[20:30], naive[:, K:], 1)).sum(axis=1)
    np.testing.assert_allclose(np.exp(table.column("rest").to_numpy()), rest, rtol=1e-4)


def test_readers_and_live_teachers_give_the_same_payload(
    store: Store, form: str, teacher: ModelSource, rows: pa.Table, wanted: np.ndarray
) -> None:
    order = np.random.default_rng(0).permutation(40)
    found: Any = pickle.loads(pickle.dumps(store)).gather(LOGITS, store.locate(row_ids(rows)[order]))
    best = np.argsort(-wanted[order], axis=1)
    assert type(found).__name__ == "BestLogits"
    assert found.ids.tolist() == best[:, :K].tolist()
    np.testing.assert_allclose(found.logp.numpy(), np.take_along_axis(wanted[order], best[:, :K], 1), rtol=2e-3)
    assert torch.allclose(found.to_dense().exp().sum(dim=-1), torch.ones(40), atol=2e-3)

    tokens = load_tokenizer(teacher)(rows.column("text").to_pylist(), padding=True, return_tensors="pt")
    live = LiveTeacher(load_model(teacher, "classification"), [LOGITS], forms=Forms("float32", {"logits": form}))
    said: Any = live.signals(MicroBatch(order, {name: values[order] for name, values in tokens.items()}, {}))[LOGITS]
    assert said.ids.tolist() == found.ids.tolist()
    torch.testing.assert_close(said.rest, found.rest, rtol=0, atol=1e-5)


def test_a_loss_has_the_right_value(store: Store, rows: pa.Table, wanted: np.ndarray) -> None:
    chosen = np.array([7, 3, 31])
    stored = StoredSignals(store, store.locate(row_ids(rows)), [LOGITS])
    batch = MicroBatch(chosen, {}, dict(stored(chosen))).to(torch.device("cpu"))
    student = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))
    term = KDOnSignals(DistillConfig(kd_loss={"kind": "kl"}, temperature=2.0), ClassHead())
    inputs = {"logits_mask": torch.tensor([1.0, 1.0, 0.0]), "labels": torch.tensor([0, 1, 2])}
    found = term({LOGITS: student}, batch.teacher, inputs)

    # Three classes, two of them kept: the third has what is left, so that nothing is lost but digits.
    p = np.exp(wanted[chosen] / 2) / np.exp(wanted[chosen] / 2).sum(axis=1, keepdims=True)
    q = np.exp(student.double().numpy() / 2) / np.exp(student.double().numpy() / 2).sum(axis=1, keepdims=True)
    naive = 4 * (p * (np.log(p) - np.log(q))).sum(axis=1)[:2].sum()
    assert float(found.count) == 2
    assert float(found.sum) == pytest.approx(naive, rel=2e-3)


def test_items_are_padded(form: str) -> None:
    """Logits of items: each row has as many as it has, and zeros behind them."""
    counts, forms = np.array([2, 0, 3], np.int32), Forms("float16", {"logits": form})
    output = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(1))
    real = np.arange(3) < counts[:, None]
    batch = encoded(forms.of(LOGITS), output, "items", torch.from_numpy(np.flatnonzero(real)), None)
    collected = Collected({"input_ids": np.array([4, 1, 5], np.int32), "items": counts}, (LOGITS,), forms)
    collected.add(np.arange(3), {"items": real}, {LOGITS: batch})
    table = collected.tables()[LOGITS]
    assert table.schema.metadata == {b"dim": b"5"}
    assert [len(row) for row in table.column("rest").to_pylist()] == counts.tolist()
    for row, count in enumerate(counts):
        best = output[row, :count].topk(K, dim=-1).indices
        assert table.column("ids").to_pylist()[row] == best.tolist()


def test_sizes_and_stored_values_are_checked(
    store: Store, form: str, teacher: ModelSource, rows: pa.Table, tmp_path: Path
) -> None:
    forms, amounts = Forms("float32", {"logits": form}), Amounts.of(store.lengths)
    planned = estimate_bytes(amounts, Widths(CLASSES, WIDTH, 2), [LOGITS], forms, 10)["logits"]
    actual = sum(path.stat().st_size for path in (store.path / store.kept(LOGITS).folder).glob("*.arrow"))
    assert planned == pytest.approx(actual, rel=0.12)  # of files this small the metadata is a tenth

    config = small_store(forms={"logits": form})
    own = capture(rows, task_of(), teacher, [LOGITS], config, tmp_path, "cpu", "fp32")
    model = load_model(teacher, "classification").eval()
    live = Teacher(model, load_tokenizer(teacher), task_of(), torch.device("cpu"), "fp32", Forms("float32"), 64)
    (check,) = compare_live(Store.open(own.path), live, 20)
    assert (check.signal, check.element_type, check.agrees) == ("logits", f"float16 in {form}", True)
    model.classifier.weight.data.mul_(1.5)
    assert not compare_live(Store.open(own.path), live, 20)[0].agrees
    hidden = small_store(forms={"hidden": form})
    with pytest.raises(ModelError, match=r"hidden\.01: top-k is for logits"):
        capture(rows, task_of(), teacher, [Signal("hidden", 1)], hidden, tmp_path, "cpu", "fp32")


def test_forms_stand_side_by_side(form: str, teacher: ModelSource, rows: pa.Table, tmp_path: Path) -> None:
    names = {"logits": form}
    dense = capture(rows, task_of(), teacher, [LOGITS], small_store(), tmp_path, "cpu", "fp32")
    path = capture(rows, task_of(), teacher, [LOGITS], small_store(forms=names), tmp_path, "cpu", "fp32").path
    assert path == dense.path
    positions, store = np.arange(40), Store.open(path)
    assert store.kept(LOGITS) == StoredAs(LOGITS, "float32")
    assert isinstance(store.gather(LOGITS, positions), torch.Tensor)
    assert Store.open(path, forms=names).kept(LOGITS) == StoredAs(LOGITS, "float16", form)
    assert len(describe(store)["signals"]) == 2
    shown = CliRunner().invoke(app, ["store", "show", str(path)]).output
    assert f"float16 in {form}" in " ".join(shown.split())
    del dense, store  # a store that is read is not pruned
    prune_stores(plan_prune(path, PruneRules(element_types=("float32",))))
    assert Store.open(path).kept(LOGITS).form == form
    with pytest.raises(StoreError, match=r"logits is not stored as float32, only logits\.float16@"):
        Store.open(path, element_type="float16").gather(LOGITS, positions)


def experiment(folder: Path, teacher: ModelSource, **store: Any) -> Any:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in make_rows(24).select(["text", "label"]).to_pylist()), encoding="utf-8"
    )
    return build_experiment(
        {
            "name": "form",
            "task": {"kind": "classification", "max_length": 24, "labels": ["0", "1", "2"]},
            "data": {"train": str(folder / "rows.jsonl")},
            "teacher": {"model": teacher.model, "source": store.pop("source", "store")},
            "student": {"shape": {"layers": 1}},
            "distill": {"temperature": 4.0},
            "train": {"epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu"},
            "store": {"storage_path": str(folder / "runs"), "launcher": "local", **store},
        }
    )


def test_a_student_learns_from_it_stored_as_live(form: str, teacher: ModelSource, tmp_path: Path) -> None:
    states, ids = [], set()
    for store in ({"forms": {"logits": form}}, {"forms": {"logits": form}, "source": "live"}, {}):
        one = experiment(tmp_path, teacher, **store)
        if one.teacher.source == "store":
            raybrew.capture(one)
        run = raybrew.distill(one, report=False)
        ids.add(one.run_id("distill"))
        states.append(AutoModelForSequenceClassification.from_pretrained(run.student).state_dict())
    assert one.run_id("distill") == experiment(tmp_path, teacher, forms={"logits": "dense"}).run_id("distill")
    kept, live, dense = states
    assert len(ids) == 3
    assert max(float((kept[name] - live[name]).abs().max()) for name in kept) < 1e-4
    assert max(float((kept[name] - dense[name]).abs().max()) for name in kept) > 0
    stored = next(path for path in (tmp_path / "runs" / "store").iterdir() if not path.name.startswith("."))
    assert sorted(path.name for path in (stored / "signals").iterdir()) == [
        "logits",
        "logits.float16@form_from_outside-TopK",
    ]


def test_problems_name_the_key(teacher: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store\.forms\.logit: .*did you mean 'logits'"):
        experiment(tmp_path, teacher, forms={"logit": "dense"})
    with pytest.raises(ConfigError, match=r"store\.forms\.logits"):
        experiment(tmp_path, teacher, forms={"logits": "densest"})
    gone = experiment(tmp_path, teacher, forms={"logits": "not_there:TopK"})
    with pytest.raises(ConfigError, match=r"store\.forms\.logits: given 'not_there:TopK'"):
        raybrew.capture(gone)
