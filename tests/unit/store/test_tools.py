"""`raybrew store`: listing, verifying against hashes and against the teacher, pruning."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_teacher import make_rows, make_teacher, small_store, task_of, tree
from typer.testing import CliRunner

import raybrew
from raybrew.cli.main import app
from raybrew.config.loading import build_experiment
from raybrew.errors import StoreError
from raybrew.models.loading import load_model
from raybrew.signals import LOGITS, Signal
from raybrew.storage.local import LocalFolder
from raybrew.store.capture import capture
from raybrew.store.manifest import USED, last_used, mark_used
from raybrew.store.pending import locked_store
from raybrew.store.prune import PruneRules, plan_prune, prune_stores
from raybrew.store.reader import Store
from raybrew.verbs.store import list_stores, verify_live, verify_stores

SIGNALS = ["hidden.01", "attention.02", "value.01", "pooled"]


def experiment(folder: Path, **store: Any) -> Any:
    return build_experiment(
        {
            "name": "tools",
            "data": {"train": str(folder / "rows.jsonl")},
            "teacher": {"model": str(folder / "teacher"), "device": "cpu"},
            "student": {"shape": {"layers": 1, "hidden": 16, "heads": 2}},
            "store": {"storage_path": str(folder), "launcher": "local", "rows_per_shard": 10, "signals": SIGNALS}
            | store,
        }
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, its rows, and a store with four signals in two element types."""
    folder = tmp_path_factory.mktemp("project")
    make_teacher(folder / "teacher")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in make_rows(35).select(["text", "label"]).to_pylist():
            file.write(json.dumps(row) + "\n")
    raybrew.capture(experiment(folder))
    raybrew.capture(experiment(folder, element_type="int8"))
    return folder


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    shutil.copytree(project, tmp_path / "project")
    return tmp_path / "project"


def store_in(folder: Path) -> Path:
    (path,) = (folder / "store").iterdir()
    return path


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["store", *map(str, arguments)], standalone_mode=False)
    assert result.exception is None
    assert (result.return_value or 0) == code, result.output
    return result.stdout


def test_ls_and_show_tell_what_is_there(project: Path) -> None:
    (listed,) = json.loads(invoke("ls", project / "store", "--json"))
    assert listed["rows"] == 35
    assert listed["problem"] is None
    assert Path(listed["path"]) == store_in(project)
    assert listed["bytes_on_disk"] == sum(p.stat().st_size for p in store_in(project).rglob("*") if p.is_file())
    assert set(listed["signals"]) == {"signals/logits"} | {
        f"signals/{name}{ending}" for name in SIGNALS for ending in ("", ".int8")
    }
    (shown,) = json.loads(invoke("show", store_in(project), "--json"))
    assert shown["signals"]["signals/attention.02.int8"] == {
        "signal": "attention.02",
        "element_type": "int8",
        "dim": 2,
        "rows": 35,
        "bytes": sum(p.stat().st_size for p in (store_in(project) / "signals/attention.02.int8").glob("*.arrow")),
    }
    assert set(shown["parts"]) == {"weights", "config", "tokenizer", "encode", "precision"}
    text = invoke("ls", project / "store")
    assert store_in(project).name in text
    assert all(word in text for word in ("35", "float16:", "int8:", *SIGNALS))
    assert "35 rows" in invoke("show", project / "store")
    assert "no stores" in invoke("ls", project / "teacher")


def test_ls_and_show_import_no_torch(project: Path) -> None:
    code = (
        "import sys; from raybrew.cli.main import app;"
        f"app(['store', sys.argv[1], {str(project / 'store')!r}], standalone_mode=False);"
        "print(sorted({'torch', 'ray', 'transformers', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    for verb in ("ls", "show", "verify", "prune"):
        done = subprocess.run(
            [sys.executable, "-c", code, verb], cwd=root, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.strip().endswith("[]"), verb


def test_verify_finds_a_changed_byte_and_a_missing_file(copied: Path) -> None:
    path = store_in(copied)
    assert [check.problems for check in verify_stores(str(copied / "store"))] == [()]
    assert "whole" in invoke("verify", path)
    file = path / "signals/hidden.01/data-00001.arrow"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    (path / "signals/value.01.int8/data-00000.arrow").unlink()
    text = invoke("verify", path, code=1)
    assert "2 problems" in text
    assert "signals/hidden.01/data-00001.arrow holds other bytes than were written" in text
    assert "signals/value.01.int8/data-00000.arrow is missing" in text
    (path / "manifest.json").write_text("{")
    (found,) = json.loads(invoke("verify", path, "--json", code=1))
    assert "no readable JSON" in found["problems"][0]
    with pytest.raises(StoreError, match="no teacher store here"):
        verify_stores(str(copied / "teacher"))


def test_verify_live_compares_every_signal_in_every_type(project: Path) -> None:
    (checks,) = verify_live(experiment(project), 12).values()
    assert {(check.signal, check.element_type) for check in checks} == {
        ("logits", "float32"),
        *((name, element_type) for name in SIGNALS for element_type in ("float16", "int8")),
    }
    for check in checks:
        assert check.agrees
        assert check.rows == 12
        assert check.largest > 0
        assert check.stored <= 1.01 * check.rounding + 8 * check.itself + 1e-5 * check.largest
        assert (check.rounding > 0) == (check.element_type != "float32")
    by_type = {(check.signal, check.element_type): check.stored for check in checks}
    assert by_type["hidden.01", "int8"] > 2 * by_type["hidden.01", "float16"] > 0


def test_verify_live_finds_values_that_are_not_the_teachers(copied: Path) -> None:
    """As a store of a broken machine would be: whole, under the right name, and wrong."""
    path = store_in(copied)
    shutil.rmtree(path)
    teacher = raybrew.capture(experiment(copied, signals=["hidden.01"])).manifest["teacher"]
    good = tree(path)
    model = load_model(raybrew_source(teacher), "classification")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 0.2
    model.save_pretrained(copied / "teacher")
    other = raybrew.capture(experiment(copied, signals=["hidden.01"])).path
    # The files of one teacher under the manifest of the other.
    make_teacher(copied / "teacher")
    for folder in ("signals", "shards", "index"):
        shutil.rmtree(path / folder)
        shutil.copytree(other / folder, path / folder)
    manifest = json.loads((other / "manifest.json").read_text())
    original = json.loads(Path(path / "manifest.json").read_text())
    del manifest["xxh3"]  # as of an older store
    (path / "manifest.json").write_text(json.dumps(manifest | {k: original[k] for k in ("fingerprint", "parts")}))
    assert tree(path) != good
    assert Store.open(path).verify() == ()
    verdicts = {check.signal: check.agrees for check in verify_live(experiment(copied), 16)[""]}
    assert verdicts == {"hidden.01": False, "logits": False}
    file = copied / "experiment.yaml"
    file.write_text(json.dumps(experiment(copied).plain()), encoding="utf-8")
    told = invoke("verify", file, "--live", 8, code=1)
    assert "DIFFERS" in told
    assert "IS NOT what the teacher gives" in told
    found = json.loads(invoke("verify", file, "--live", 8, "--json", code=1))
    assert [check["agrees"] for check in found[-1]["live"]] == [False, False]
    assert "whole" in invoke("verify", file)


def raybrew_source(model: str) -> Any:
    from raybrew.models.loading import ModelSource

    return ModelSource(model)


def test_a_changed_teacher_is_refused_with_both_fingerprints(copied: Path) -> None:
    old = raybrew.capture(experiment(copied, path=str(copied / "own"))).fingerprint
    model = load_model(raybrew_source(str(copied / "teacher")), "classification")
    model.classifier.bias.data += 1.0
    model.save_pretrained(copied / "teacher")
    changed = experiment(copied, path=str(copied / "own"))
    with pytest.raises(StoreError) as caught:
        raybrew.distill(
            changed.model_copy(update={"teacher": changed.teacher.model_copy(update={"source": "store"})}), report=False
        )
    message = str(caught.value)
    assert f". {old} was captured from another weights under that name" in message
    fingerprints = {word for word in message.replace(",", " ").split() if len(word) == 32}
    assert len(fingerprints) == 2
    assert old in fingerprints
    with pytest.raises(StoreError, match=f"{old} was captured from another weights"):
        verify_live(changed, 4)


def test_prune_shows_and_then_removes_signals(copied: Path) -> None:
    path, root = store_in(copied), copied / "store"
    shutil.rmtree(path)
    raybrew.capture(experiment(copied))
    raybrew.capture(experiment(copied, element_type="int8"))
    before = tree(path)
    rules = PruneRules(signals=("hidden.01", "value.01"), element_types=("int8",))
    removals = plan_prune(root, rules)
    assert [removal.what for removal in removals] == ["hidden.01 as int8", "value.01 as int8"]
    files = [path / "signals/hidden.01.int8", path / "signals/value.01.int8"]
    size = sum(file.stat().st_size for folder in files for file in folder.iterdir())
    assert sum(removal.bytes for removal in removals) == size
    assert f"{size / 2**20:.1f} MiB would be removed" in invoke(
        "prune", root, "--signal", "hidden.01", "--signal", "value.01", "--element-type", "int8"
    )
    assert tree(path) == before
    assert prune_stores(removals) == size
    assert not any(folder.exists() for folder in files)
    store = Store.open(path)
    assert store.verify() == ()
    assert "signals/hidden.01" in store.manifest["signals"]
    assert "signals/hidden.01.int8" not in store.manifest["signals"]
    # What is left is as it was, and what is gone can be captured again, to the same bytes.
    after = tree(path)
    same = {name: value for name, value in before.items() if name.startswith(("examples/", "signals/hidden.01/"))}
    assert same.items() <= after.items()
    raybrew.capture(experiment(copied, element_type="int8"))
    assert tree(path) == before


def test_prune_by_type_by_name_and_by_time(copied: Path) -> None:
    path, root = store_in(copied), copied / "store"
    everything = plan_prune(root, PruneRules(element_types=("float16",)))
    assert len(everything) == len(SIGNALS)
    assert plan_prune(root, PruneRules(unused_days=1)) == ()
    old = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=3)
    (path / USED).write_text(json.dumps({"used": old.isoformat()}))
    assert last_used(LocalFolder(path)) == old
    (removal,) = plan_prune(root, PruneRules(unused_days=2))
    assert removal.whole
    assert "3 days" in removal.what
    mark_used(LocalFolder(path))
    assert plan_prune(root, PruneRules(unused_days=2)) == ()
    (removal,) = plan_prune(path, PruneRules(stores=(path.name[:6],)))
    assert prune_stores([removal]) == removal.bytes > 0
    assert not path.exists()
    assert list_stores(str(root)) == ()


def test_prune_removes_what_dead_captures_left(copied: Path) -> None:
    path, root = store_in(copied), copied / "store"
    before = tree(path)
    (path / "signals/logits/data-00017.arrow").write_bytes(b"half a shard")
    (path / "shards/.00002.json.4711.tmp").write_text("{")
    (path / "index/0123.arrow").write_bytes(b"of an old manifest")
    (path / "pending/dead").mkdir(parents=True)
    (path / "pending/dead/data-00002.arrow").write_bytes(b"rows")
    (removal,) = plan_prune(root, PruneRules())
    assert (removal.what, removal.bytes) == ("4 files that a capture left behind", 12 + 1 + 18 + 4)
    assert prune_stores([removal]) == 35
    assert tree(path) == before
    assert plan_prune(root, PruneRules()) == ()


def test_prune_leaves_a_store_that_is_captured_alone(copied: Path) -> None:
    path, root = store_in(copied), copied / "store"
    with locked_store(LocalFolder(path)):
        planned = plan_prune(root, PruneRules(stores=(path.name,)))
        assert planned[0].held is not None
        assert "process" in planned[0].held
        assert prune_stores(planned) == 0
        told = invoke("prune", root, "--store", path.name, "--yes")
        assert "is capturing" in told
        assert plan_prune(root, PruneRules()) == ()  # what is pending is no leftover
    assert Store.open(path).verify() == ()
    # Planned while nobody held it, and held since.
    planned = plan_prune(root, PruneRules(stores=(path.name,)))
    with locked_store(LocalFolder(path)), pytest.raises(StoreError, match="is capturing into this store"):
        prune_stores(planned)
    assert Store.open(path).verify() == ()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"signals": ("hiden.1",)}, "--signal hiden.1: unknown signal 'hiden'"),
        ({"signals": ("hidden.07",)}, "no store holds hidden.07"),
        ({"element_types": ("float8",)}, "--element-type float8: no element type; allowed: float32, float16"),
        ({"element_types": ("bfloat16",)}, "no store holds bfloat16"),
        ({"stores": ("abc",)}, "--store abc: no fingerprint"),
        ({"stores": ("00000000",)}, "no store 00000000 here"),
        ({"unused_days": -1.0}, "--unused-days -1: must not be negative"),
    ],
)
def test_rules_that_fit_nothing_are_errors(project: Path, rules: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        plan_prune(project / "store", PruneRules(**rules))


def test_stores_of_another_version_are_listed_and_can_go(copied: Path) -> None:
    path, root = store_in(copied), copied / "store"
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    (entry,) = list_stores(str(root))
    assert entry.store is None
    assert "format version 1" in (entry.problem or "")
    assert "capture again" in invoke("ls", root, "--json")
    assert prune_stores(plan_prune(root, PruneRules(stores=(path.name,)))) > 0
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("change", [{"format_version": 3}, {"kind": "a data set of mine"}])
def test_what_is_not_ours_is_neither_captured_into_nor_pruned(copied: Path, change: dict[str, Any]) -> None:
    path, root = store_in(copied), copied / "store"
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | change))
    (path / "signals/logits/data-00017.arrow").write_bytes(b"known to that version alone")
    (path / "shards/00001.json").unlink()
    before = tree(path)
    with pytest.raises(StoreError, match=r"format version 3|not the manifest of a raybrew teacher store"):
        raybrew.capture(experiment(copied))
    assert plan_prune(root, PruneRules()) == ()
    if "kind" in change:
        assert plan_prune(root, PruneRules(stores=(path.name,))) == ()
    with pytest.raises(StoreError, match="no store holds"):
        plan_prune(root, PruneRules(signals=("hidden.01",)))
    assert tree(path) == before


def test_a_read_only_store_is_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalFolder, name: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", name)

    path = store_in(copied)
    (path / USED).unlink()
    monkeypatch.setattr(LocalFolder, "write", refuse)
    mark_used(LocalFolder(path))
    assert last_used(LocalFolder(path)) is None
    rows = make_rows(35)
    source = raybrew_source(str(copied / "teacher"))
    store = capture(
        rows, task_of(128), source, (LOGITS, Signal("hidden", 1)), small_store(), path.parent, "cpu", "fp32"
    )
    assert store.num_rows == 35
