"""plan: bytes against what a capture writes, the arithmetic of store and live, and what `auto` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_teacher import CLASSES, WIDTH, make_teacher, ragged_rows, small_store, task_of

from raybrew.config.loading import load_experiment
from raybrew.config.space import planned_trainings
from raybrew.config.sweep import SweepConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource, load_tokenizer
from raybrew.pipeline import store_or_live as source_module
from raybrew.pipeline.resolve import resolve
from raybrew.pipeline.sizes import token_columns
from raybrew.pipeline.store_or_live import runs_live
from raybrew.planning import student as plan_student
from raybrew.planning.result import plan_tables
from raybrew.signals import LOGITS, POOLED, Signal
from raybrew.store.capture import capture
from raybrew.store.estimate import Amounts, Widths, estimate_bytes
from raybrew.store.forms.base import Forms
from raybrew.store.reader import Store
from raybrew.verbs.plan import Plan, StorePlan, TrainingPlan, plan

HIDDEN = (Signal("hidden", 0), Signal("hidden", 2))
ATTENTION = (Signal("attention", 1), Signal("attention_probs", 2), Signal("value", 1))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


def rows_of(count: int, words: tuple[int, int], pair: bool = False) -> pa.Table:
    rng = np.random.default_rng(0)
    texts = [f"{' '.join(['kola'] * int(rng.integers(*words)))} {number}" for number in range(count)]
    return ragged_rows(texts, texts[::-1] if pair else None)


def stored_bytes(store: Store) -> dict[str, int]:
    """Bytes of the data files by the names of an estimate."""
    found: dict[str, int] = {}
    for path in store.path.rglob("*.arrow"):
        folder = path.parent.name
        parts = folder.split(".")
        name = ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdecimal() else parts[0]
        found[name] = found.get(name, 0) + path.stat().st_size
    return found


@pytest.mark.parametrize(
    ("element_type", "request_", "words", "pair"),
    [
        ("float32", (LOGITS,), (1, 5), False),
        ("float16", (LOGITS, *HIDDEN), (1, 5), False),
        ("float32", (LOGITS, *HIDDEN), (30, 50), False),
        ("bfloat16", HIDDEN, (10, 20), True),
        ("int8", (LOGITS, POOLED, *HIDDEN), (1, 5), False),
        ("int8", (*HIDDEN, *ATTENTION), (30, 50), False),
        ("float16", (LOGITS, POOLED, *ATTENTION), (1, 30), True),
    ],
)
def test_bytes_hold_within_two_per_cent(
    tmp_path: Path, teacher: ModelSource, element_type: str, request_: Any, words: tuple[int, int], pair: bool
) -> None:
    rows, task = rows_of(300, words, pair), task_of(max_length=60, pair=pair)
    settings = small_store(element_type=element_type, rows_per_shard=128, batch_tokens=4096)
    store = capture(rows, task, teacher, request_, settings, tmp_path, "cpu", "fp32")
    sample = token_columns(task, load_tokenizer(teacher), rows)
    assert sample.whole
    amounts = Amounts.of(sample.lengths, sample.items, sample.columns)
    assert (amounts.rows, amounts.tokens) == (300, int(store.lengths.sum()))
    planned = estimate_bytes(amounts, Widths(CLASSES, WIDTH, 2), request_, Forms(element_type), 128)
    actual = stored_bytes(store)
    assert set(planned) == set(actual)
    for name, expected in planned.items():
        assert actual[name] == pytest.approx(expected, rel=0.02), name
    assert sum(actual.values()) == pytest.approx(sum(planned.values()), rel=0.02)


def test_a_sample_stands_for_all_rows(teacher: ModelSource) -> None:
    rows, task = rows_of(3000, (1, 40)), task_of(max_length=60)
    whole = token_columns(task, load_tokenizer(teacher), rows)
    sample = token_columns(task, load_tokenizer(teacher), rows, most=1000)
    assert not sample.whole
    exact, guessed = Amounts.of(whole.lengths), Amounts.of(sample.lengths, rows=sample.rows)
    assert guessed.rows == exact.rows == 3000
    assert guessed.tokens == pytest.approx(exact.tokens, rel=0.03)
    assert guessed.pairs == pytest.approx(exact.pairs, rel=0.06)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, teacher: ModelSource) -> Path:
    folder = tmp_path_factory.mktemp("project")
    lines = [json.dumps({"text": f"kola mane {number}", "label": number % CLASSES}) for number in range(90)]
    (folder / "train.jsonl").write_text("\n".join(lines + lines[:10]), encoding="utf-8")
    path = folder / "experiment.yaml"
    path.write_text(
        f"name: x\ndata: {{train: {folder / 'train.jsonl'}}}\n"
        f"teacher: {{model: {teacher.model}}}\nstudent: {{shape: {{layers: 1}}}}\n"
        "distill: {matches: [{loss: hidden_mse, layers: [[1, 2]]}]}\n"
        f"train: {{epochs: 3, batch_size: 20, device: cpu}}\nstore: {{storage_path: {folder / 'runs'}}}\n",
        encoding="utf-8",
    )
    return path


def test_a_plan_of_an_experiment(project: Path) -> None:
    import raybrew

    experiment = load_experiment(project)
    found = plan(experiment, trials=4, price_per_hour=3600.0)
    (store,), training = found.stores, found.training
    assert training is not None
    # Repeats are stored once, but trained on.
    assert (store.rows, training.rows, training.steps, training.epochs) == (90, 100, 15, 3.0)
    assert set(store.bytes) == {"examples", "logits", "hidden.02", "index"}
    assert found.passes == 12
    assert found.live_seconds - found.stored_seconds == pytest.approx(11 * store.actor_seconds)
    assert found.advice == "store"
    assert found.problems == ()
    assert not (project.parent / "runs").exists()
    told = json.loads(json.dumps(found.plain()))
    assert told["price"]["store"] == pytest.approx(found.stored_seconds)
    elsewhere = f"data.cache={project.parent / 'cache'}"
    captured = raybrew.capture(load_experiment(project, ["store.launcher=local", elsewhere]))
    assert (project.parent / "runs" / ".rayignore").is_file(), "what it makes does not travel with a job"
    assert sum(stored_bytes(captured).values()) == pytest.approx(store.total_bytes, rel=0.02)
    with pytest.raises(ConfigError, match=r"--trials: given 0"):
        plan(experiment, trials=0)


def test_a_plan_before_the_teacher_is_trained(project: Path, tmp_path: Path) -> None:
    experiment = load_experiment(
        project, ["teacher.finetune={epochs: 1}", f"store.storage_path={tmp_path}", "distill.matches=[]"]
    )
    found = plan(experiment)
    assert set(found.stores[0].bytes) == {"examples", "logits", "index"}
    ((finetune,), training) = (found.finetunes, found.training)
    assert training is not None
    # 100 rows in batches of 32, once.
    assert (finetune.training.rows, finetune.training.steps, finetune.training.epochs) == (100, 4, 1.0)
    assert finetune.training.worker_seconds > 0
    rest = found.teacher_seconds + found.student_seconds
    assert found.stored_seconds == pytest.approx(rest + finetune.training.worker_seconds)
    assert found.plain()["finetune"][0]["training"]["steps"] == 4
    assert any(title.startswith("finetune of") for title, _ in plan_tables(found))


def test_a_teacher_that_is_trained_is_not_planned_again(project: Path) -> None:
    assert plan(load_experiment(project)).finetunes == ()


def made(bytes_: int = 100, free: int | None = 1000, epochs: float = 3.0, trials: int = 1) -> Plan:
    store = StorePlan("x", "t", "runs", 10, 99, 12, 4, "float16", {"logits": bytes_}, bytes_, free, 1.0, 60.0, 8, "cpu")
    problems = () if store.fits else ("x: too large",)
    return Plan("x", trials, (store,), TrainingPlan(10, epochs, 30, 1.0, 30.0, 2, "cpu"), None, problems)


@pytest.mark.parametrize("student", ["{shape: {layers: 1}}", "{shape: BiGRU, init: random}"])
@pytest.mark.parametrize("min_count", [1, 30])
def test_a_trimmed_student_is_planned_as_it_is_trained(
    student: str, min_count: int, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raybrew

    overrides = [f"student={student}", "distill.matches=[]", "train.epochs=1", "teacher.source=live"]
    whole = plan(load_experiment(project, overrides)).student
    trimmed = [*overrides, f"student.vocabulary={{min_count: {min_count}}}", f"store.storage_path={tmp_path}"]
    if min_count > 1:  # rows may be cut into other pieces
        trimmed.append("teacher.source=store")
        trimmed.append("store.launcher=local")
    experiment = load_experiment(project, trimmed)
    found = plan(experiment).student
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    assert whole is not None
    assert found is not None
    assert whole.vocabulary_before is None
    assert whole.parameters - found.parameters == found.parameters_saved > 0
    if min_count > 1:
        raybrew.capture(experiment)
    run = raybrew.distill(experiment, report=False)
    facts = run.summary["student"]
    assert (found.parameters, found.weight_bytes) == (facts["parameters"], 4 * facts["parameters"])
    assert found.training_bytes == 4 * found.weight_bytes, "nothing is matched, so there are no projections"
    tokenizer = load_tokenizer(ModelSource(str(run.student)))
    assert (found.vocabulary, found.vocabulary_before) == (len(tokenizer), whole.vocabulary)
    assert found.vocabulary_is_whole

    # Of a sample it knows fewer pieces, and says so.
    monkeypatch.setattr(plan_student, "sample_of", lambda rows: rows.slice(0, 3))
    sampled = plan(experiment)
    assert sampled.student is not None
    assert sampled.student.vocabulary < found.vocabulary or min_count > 1
    assert (sampled.student.vocabulary_rows, sampled.student.vocabulary_rows_in_all) == (3, 100)
    words = dict(plan_tables(sampled)[-1][1])["vocabulary"]
    assert f"{sampled.student.vocabulary:,} of {whole.vocabulary:,} pieces" in words
    assert "by a sample of 3 of 100 rows" in words


def test_store_or_live() -> None:
    usual = made()
    assert (usual.advice, usual.stores[0].seconds) == ("store", 15.0)  # four shards keep four actors busy
    assert (usual.stored_seconds, usual.live_seconds) == (90.0, 210.0)
    assert usual.training is not None
    assert usual.training.epoch_seconds == 5.0
    assert (usual.read_rate, usual.stores[0].write_rate) == (20.0, 100 / 15)  # bytes an epoch, bytes a capture
    assert made(free=50).advice == "live"
    assert "too large" in made(free=50).verdict
    assert made(free=None).advice == "store"
    assert made(epochs=1.0).advice == "live"
    assert made(epochs=1.0, trials=2).advice == "store"
    assert "2 times (2 trainings of 1 epoch)" in made(epochs=1.0, trials=2).verdict


def test_a_sweep_is_as_many_trainings_as_it_has_trials(project: Path) -> None:
    sweep: dict[str, Any] = {"space": {"distill.temperature": [1, 2, 4]}}

    def trainings(**changes: Any) -> int:
        return planned_trainings(SweepConfig.model_validate({**sweep, **changes}))

    assert trainings() == 3, "of 16 that are drawn no more than there are"
    assert trainings(space={"distill.temperature": {"uniform": [1, 2]}}) == 16
    assert trainings(search="grid", seeds=2) == 6
    assert trainings(trials=2, rerun_best={"count": 1, "seeds": 3}) == 2 + 2
    rows = load_experiment(project).data.train
    overrides = ["sweep.space.distill.temperature=[1,2,4]", "train.epochs=1", f"data.eval={rows}"]
    found = plan(load_experiment(project, overrides))
    assert (found.trials, found.controls, found.advice) == (3, 1, "store")
    assert found.training is not None
    assert found.student_seconds == pytest.approx(4 * found.training.worker_seconds)
    assert any(name.startswith("3 trainings and 1 control") for name, _ in plan_tables(found)[-1][1])


def test_a_plan_in_notebooks() -> None:
    page = made()._repr_html_()
    assert "<h4>store of x</h4>" in page
    assert "99 tokens" in page
    assert made().verdict in page


def test_auto_takes_the_store_unless_it_does_not_pay(
    project: Path, teacher: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def live(*overrides: str, free: int = 1 << 40, trainings: int = 1) -> bool:
        said.clear()
        monkeypatch.setattr(source_module, "free_bytes", lambda one: free)
        experiment = load_experiment(project, [f"store.storage_path={tmp_path}", "store.launcher=local", *overrides])
        experiment = experiment.model_copy(update={"teacher": TeacherConfig(model=teacher.model)})
        task = resolve(experiment).tasks[0]
        request = (LOGITS, *HIDDEN)
        return runs_live(task, task.teachers[0], rows_of(200, (1, 20)), request, CLASSES, said.append, trainings)

    assert not live("train.epochs=1")
    assert said == []  # small
    monkeypatch.setattr(source_module, "SMALL_BYTES", 1000)
    assert not live()
    assert said[0].startswith("teacher.source auto: store, ")
    assert live("train.epochs=1")
    assert "one epoch would read the" in said[0]
    assert not live("train.epochs=1", trainings=12), "trials share the store"
    assert "12 trials of 1 epoch would run the teacher 12 times" in said[0]
    assert live(free=1000)
    assert "1000 B are free for" in said[0]
    # Where a store answers already, it does.
    settings = small_store(rows_per_shard=100)
    capture(
        rows_of(200, (1, 20)), task_of(128), teacher, (LOGITS, *HIDDEN), settings, tmp_path / "store", "cpu", "fp32"
    )
    assert not live("train.epochs=1", free=1000)
    assert said == []


def test_a_live_teacher_by_auto_trains(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import raybrew

    monkeypatch.setattr(source_module, "SMALL_BYTES", 10)
    experiment = load_experiment(project, [f"store.storage_path={tmp_path}", "train.epochs=1"])
    run = raybrew.distill(experiment, report=False)
    assert run.summary["distill"]["source"] == "live"
    assert not (tmp_path / "store").exists()


def test_what_this_machine_lacks_is_a_problem(project: Path) -> None:
    overrides = ["store.cpus_per_actor=5000", "train.workers=20", "train.cpus_per_worker=900"]
    found = plan(load_experiment(project, overrides))
    assert len(found.problems) == 2
    assert "store.actors, store.cpus_per_actor: 1 actors of 5000 CPUs" in found.problems[0]
    assert "train.workers" in found.problems[1]


def test_the_command_prints_a_table_or_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from raybrew.cli.main import main

    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            main(["plan", str(project), "--trials", "4", "--price-per-hour", "2", *extra])
        assert not caught.value.code
        out = capsys.readouterr().out
        if extra:
            assert json.loads(out)["trials"] == 4
        else:
            assert "90 rows" in out
            assert "hidden.02" in out
            assert "parameters, " in out
            assert "a second from a store" in out
            assert "4 trainings, teacher live" in out
            assert "verdict: store: the teacher runs once instead of 12 times" in out
    assert not (project.parent / "runs/x").exists()
