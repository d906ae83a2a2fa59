"""A changed byte in what a run reads is noticed before it is used: recomputed where possible, else one error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from family_models import without_latency
from safetensors.torch import load_file
from tiny_teacher import make_rows, make_teacher, small_store, task_of, tree

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.config.train import EarlyStoppingConfig
from raybrew.data.rows import row_ids
from raybrew.errors import ConfigError, ModelError, RunError, StoreError
from raybrew.models.loading import ModelSource, load_model
from raybrew.models.weights import read_record
from raybrew.pipeline.resolve import teacher_source
from raybrew.records.ranking import best_mark
from raybrew.signals import LOGITS, Signal
from raybrew.store.capture import capture
from raybrew.store.prune import PruneRules, plan_prune, prune_stores
from raybrew.store.reader import Store
from raybrew.training.encoded import Patience
from raybrew.training.run_folder import RunFolder
from unit.models.test_families import experiment_of

HIDDEN = Signal("hidden", 1)


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit; size and name stay."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, pa.Table, Path]:
    folder = tmp_path_factory.mktemp("captured")
    teacher, rows = make_teacher(folder / "teacher"), make_rows(25)
    return teacher, rows, run(rows, teacher, folder / "store").path


def run(rows: pa.Table, teacher: ModelSource, root: Path) -> Store:
    return capture(rows, task_of(), teacher, (LOGITS, HIDDEN), small_store(), root, "cpu", "fp32")


@pytest.mark.parametrize(
    ("name", "noticed"),
    [
        ("signals/logits/data-00001.arrow", "damaged: signals/logits/data-00001.arrow holds other bytes"),
        ("signals/hidden.01/data-00002.arrow", "damaged: signals/hidden.01/data-00002.arrow holds other bytes"),
        ("examples/data-00000.arrow", "damaged: examples/data-00000.arrow holds other bytes"),
        ("index/*.arrow", None),  # made anew by the reader
        ("shards/00001.json", None),  # readers go by the manifest
        ("manifest.json", "manifest.json: damaged"),
    ],
)
def test_a_capture_mends_what_a_reader_refuses(
    captured: tuple[ModelSource, pa.Table, Path], tmp_path: Path, name: str, noticed: str | None
) -> None:
    teacher, rows, finished = captured
    path = shutil.copytree(finished, tmp_path / finished.name)
    whole = tree(path)
    (file,) = path.glob(name)
    flip(file)

    def read() -> None:
        store = Store.open(path)
        positions = store.locate(row_ids(rows))
        for signal in (LOGITS, HIDDEN):
            assert store.gather(signal, positions).equal(Store.open(finished).gather(signal, positions))

    if noticed is None:
        read()
    else:
        with pytest.raises(StoreError, match=noticed):
            read()
    mended = run(rows, teacher, tmp_path)
    assert mended.verify() == ()
    assert tree(path) == whole, "no more than what was damaged is written, and as it was"
    read()


def test_a_store_that_is_read_is_not_pruned(captured: tuple[ModelSource, pa.Table, Path], tmp_path: Path) -> None:
    path = shutil.copytree(captured[2], tmp_path / captured[2].name)
    (early,) = plan_prune(path, PruneRules(signals=("hidden.01",)))
    store = Store.open(path)
    store.gather(LOGITS, store.locate(store.ids[:1]))
    rules = PruneRules(stores=(path.name,))
    (removal,) = plan_prune(path, rules)
    assert removal.held == "a run is reading it"
    assert prune_stores([removal, early]) == 0, "also where the reader came after the plan"
    assert Store.open(path).verify() == ()
    del store
    (removal,) = plan_prune(path, rules)
    assert removal.held is None
    assert prune_stores([removal]) > 0
    assert not path.exists()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    without_latency(monkeypatch)
    train = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "threads": 1, "device": "cpu"}
    finetune = {"max_steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}
    experiment = experiment_of(tmp_path, "bert", "classification", train=train)
    teacher = experiment.teacher.model_dump(mode="json", exclude_unset=True)
    return experiment_of(
        tmp_path, "bert", "classification", train=train, teacher={**teacher, "source": "auto", "finetune": finetune}
    )


def test_each_changed_file_of_a_run_is_noticed(project: Experiment, tmp_path: Path) -> None:
    """Teacher, store, encoded rows and student: the same student in the end, or an error whose command leads there."""
    finetuned = raybrew.finetune(project)
    first = raybrew.distill(project)
    weights = load_file(first.student / "model.safetensors")

    def again(**changes: Any) -> None:
        result = raybrew.distill(project.model_copy(update=changes), run_id="again")
        trained = load_file(result.student / "model.safetensors")
        assert all(bool((trained[name] == tensor).all()) for name, tensor in weights.items())
        shutil.rmtree(result.path)

    (store,) = (tmp_path / "runs" / "store").iterdir()
    flip(store / "signals" / "logits" / "data-00000.arrow")
    fixed = project.teacher.model_copy(update={"source": "store"})
    with pytest.raises(StoreError, match=r"signals/logits/data-00000\.arrow holds other .*`raybrew capture --verify`"):
        again(teacher=fixed)
    raybrew.capture(project)
    again(teacher=fixed)
    flip(store / "signals" / "logits" / "data-00000.arrow")
    for encoded in (tmp_path / "runs" / ".cache").glob("*/data-*.arrow"):
        flip(encoded)
    again()

    flip(finetuned.student / "model.safetensors", 0.9)
    with pytest.raises(RunError, match=r"model\.safetensors holds other bytes .*run `raybrew finetune`"):
        again()
    assert len(list((tmp_path / "runs" / "store").iterdir())) == 1, "nothing was captured from the damaged teacher"
    assert not raybrew.finetune(project).already_done
    again()

    flip(first.student / "model.safetensors", 0.9)
    with pytest.raises(ModelError, match="not the model that was trained"):
        load_model(ModelSource(str(first.student)), "classification")
    with pytest.raises(RunError, match=r"is not the one that was trained: model\.safetensors holds other bytes.*again"):
        raybrew.evaluate(project)
    second = raybrew.distill(project)
    assert not second.already_done
    assert second.summary["best"] == first.summary["best"]

    for path in finetuned.student.glob("model*"):
        path.unlink()
    with pytest.raises(RunError, match="raybrew finetune"):
        teacher_source(project)
    restored = raybrew.finetune(project)
    assert not restored.already_done
    assert (restored.student / "model.safetensors").is_file()
    assert raybrew.finetune(project).already_done


def test_a_run_folder_that_is_removed_ends_its_run(project: Experiment) -> None:
    raybrew.finetune(project)
    folder = RunFolder.of(project, "distill").path
    every = project.train.model_copy(update={"eval_steps": 1})
    project = project.model_copy(update={"train": every})
    folder = RunFolder.of(project, "distill").path

    def remove(metrics: Any) -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return False

    with pytest.raises(RunError, match="was removed or replaced while this run was training"):
        raybrew.distill(project, on_evaluation=remove)
    assert not (folder / "student").exists()
    assert not (folder / "checkpoints").exists()
    assert raybrew.distill(project).summary["steps"] == 2


@pytest.mark.parametrize("name", ["../x", "..", ".", "a/b", "/x", "", "-x", "a" * 201, "a\n"])
def test_run_ids_do_not_lead_outside(name: str) -> None:
    experiment = build_experiment(
        {"name": "x", "data": {"train": "x.jsonl"}, "teacher": {"model": "x"}}, check_files=False
    )
    with pytest.raises(ConfigError, match="--run-id: given"):
        RunFolder.of(experiment, "distill", name)
    assert RunFolder.of(experiment, "distill", "a-1.b_C").path.name == "a-1.b_C"


@pytest.mark.parametrize("run", ["../..", "..", "/x", "a/b", "", None, 3])
def test_the_mark_of_the_best_student_does_not_lead_outside(tmp_path: Path, run: Any) -> None:
    (tmp_path / "best.json").write_text(json.dumps({"run": run}))
    assert best_mark(tmp_path) is None
    (tmp_path / "best.json").write_text(json.dumps({"run": "distill-1"}))
    assert best_mark(tmp_path) == {"run": "distill-1"}


def test_the_student_on_the_disk_is_the_one_of_the_newest_checkpoint(
    project: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation is the best; checkpoints come more rarely; the run dies after any evaluation."""
    import raybrew.training.loop
    from raybrew.runs.hooks import RunHooks
    from raybrew.training.checkpoints import Checkpoints

    monkeypatch.setattr(raybrew.training.loop, "_better", lambda score, best: True)
    raybrew.finetune(project)
    train = project.train.model_copy(update={"max_steps": 7, "eval_steps": 1, "checkpoint_steps": 3})
    project = project.model_copy(update={"train": train})
    whole = raybrew.distill(project, run_id="whole")
    log, kills = RunHooks.log, [2, 3, 5, 7]

    def killed(self: Any, record: dict[str, Any]) -> None:
        log(self, record)
        if kills and record["kind"] == "eval" and record["step"] == kills[0]:
            kills.pop(0)
            raise KeyboardInterrupt

    monkeypatch.setattr(RunHooks, "log", killed)
    folder = RunFolder.of(project, "distill", "killed")
    while kills:
        with pytest.raises(KeyboardInterrupt):
            raybrew.distill(project, run_id="killed")
        newest = Checkpoints(folder.checkpoints, 1).load_newest()
        record = read_record(folder.student)
        assert (None if record is None else record["step"]) == (None if newest is None else newest[1]["best"]["step"])
    ended = raybrew.distill(project, run_id="killed")
    record = read_record(ended.student)
    assert record is not None
    assert record["step"] == ended.summary["best"]["step"] == 7
    assert ended.summary["best"] == whole.summary["best"]
    one, other = (load_file(result.student / "model.safetensors") for result in (ended, whole))
    assert all(bool((one[name] == tensor).all()) for name, tensor in other.items())
    assert not list(ended.path.rglob("*.next*"))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_first_metric_that_is_no_number_does_not_stay_the_best(
    project: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raybrew.runs.hooks

    joint, values = raybrew.runs.hooks.joint_metrics, iter([float("nan"), 0.25, float("nan")])

    def measured(*given: Any) -> dict[str, float]:
        return joint(*given) | {"accuracy": next(values, 0.2)}

    monkeypatch.setattr(raybrew.runs.hooks, "joint_metrics", measured)
    train = project.train.model_copy(update={"max_steps": 4, "eval_steps": 1})
    labels = project.distill.model_copy(update={"kd_weight": 0.0, "hard_label_weight": 1.0, "matches": ()})
    teacher = project.teacher.model_copy(update={"finetune": None})
    found = raybrew.distill(project.model_copy(update={"train": train, "distill": labels, "teacher": teacher}))
    assert found.summary["best"]["step"] == 2
    assert found.summary["best"]["value"] == 0.25


def test_patience_counts_what_is_no_number_as_no_gain() -> None:
    patience = Patience(EarlyStoppingConfig(patience=2))
    nan = float("nan")
    assert [patience.ends_with(value) for value in (nan, 0.5, nan, 0.6, nan, 0.6)] == [False] * 5 + [True]
    assert patience.best == 0.6
