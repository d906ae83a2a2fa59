"""Runs log the evaluation loss of their objective, and keep the checkpoint of the lowest where no head is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import rows_of, save_family_teacher, without_latency

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.errors import StoreError
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.records.runs import load_run
from raybrew.reports.compare import LOSSES_DIFFER, compare
from raybrew.reports.decision import decide
from raybrew.runs.result import RunResult
from raybrew.store import compute
from raybrew.tracking.jsonl import read_metrics
from unit.models.test_families import LABELS, TASKS, experiment_of

LAYERS = {"kd_weight": 0.0, "matches": [{"loss": "hidden_mse"}]}
TRAIN = {"max_steps": 6, "eval_steps": 1, "batch_size": 4, "learning_rate": 3e-2, "threads": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)


def changed(experiment: Experiment, **sections: Any) -> Experiment:
    plain = experiment.written()
    return build_experiment(
        {**plain, **{name: {**plain[name], **values} for name, values in sections.items() if isinstance(values, dict)}}
        | {name: value for name, value in sections.items() if not isinstance(value, dict)}
    )


def evals(run: RunResult) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run.path / "metrics.jsonl") if record["kind"] == "eval"]


def notes(run: RunResult) -> str:
    return "\n".join(str(record.get("message")) for record in read_metrics(run.path / "metrics.jsonl"))


@pytest.mark.parametrize("task", TASKS)
def test_the_checkpoint_of_the_lowest_loss_is_kept(task: str, tmp_path: Path) -> None:
    """Layers alone, from the store and live: the same losses, and the same choice."""
    base = experiment_of(tmp_path, "bert", task, distill=LAYERS, train=TRAIN)
    live = changed(base, name="live", teacher={"source": "live"}, store={"element_type": "float32"})
    stored = changed(live, name="stored", teacher={"source": "auto"})
    runs = {name: raybrew.distill(experiment) for name, experiment in (("stored", stored), ("live", live))}
    for run in runs.values():
        lines, summary = evals(run), run.summary
        lowest = min(lines, key=lambda line: line["eval/loss"])
        assert [line["step"] for line in lines if line["best"]][-1] == lowest["step"] == summary["best"]["step"]
        assert {line["judge"] for line in lines} == {"loss"}
        assert (summary["best"]["metric"], summary["best"]["value"]) == ("loss", lowest["eval/loss"])
        terms = [name for name in summary["best"]["losses"] if name != "loss"]
        assert terms == ["loss/hidden_mse.0-0", "loss/hidden_mse.1-2", "loss/hidden_mse.2-4"]
        assert sum(lowest[f"eval/{name}"] for name in terms) == pytest.approx(lowest["eval/loss"])
        assert not any("loss" in name for name in summary["best"]["metrics"])
        assert summary["last"]["losses"]["loss"] == lines[-1]["eval/loss"]
        assert summary["chosen"]["by"] == "loss"
        assert "the checkpoint with the lowest evaluation loss is kept" in notes(run)
        assert run.metrics == summary["best"]["metrics"]
        best = load_run(run.path).best
        assert best is not None
        assert (best.metric, best.score) == ("loss", -best.value)
    first, second = ([line["eval/loss"] for line in evals(run)] for run in runs.values())
    assert first == pytest.approx(second, rel=1e-3)


def test_a_trained_head_is_judged_by_its_metric(tmp_path: Path) -> None:
    """With the losses beside it; so are controls and fine-tuned models, whose loss is that of labels."""
    base = experiment_of(tmp_path, "bert", "classification", train=TRAIN)
    student = raybrew.distill(base)
    control = raybrew.distill(changed(base, distill={"kd_weight": 0.0, "hard_label_weight": 1.0, "matches": []}))
    teacher = raybrew.finetune(changed(base, teacher={"finetune": TRAIN}))
    for run, terms in (
        (student, ["kd", "hidden_mse.0-0", "hidden_mse.1-2", "hidden_mse.2-4"]),
        (control, ["label"]),
        (teacher, ["label"]),
    ):
        assert run.summary["best"]["metric"] == run.summary["chosen"]["by"] == "accuracy"
        assert list(run.summary["best"]["losses"]) == ["loss", *(f"loss/{term}" for term in terms)]
        assert all(line["eval/loss"] > 0 and line["judge"] == "accuracy" for line in evals(run))
        assert "lowest evaluation loss" not in notes(run)
    kept = max(evals(student), key=lambda line: (line["eval/accuracy"], -line["step"]))
    assert student.summary["best"]["step"] == kept["step"]
    # What is logged at the end is what the model that is kept gives: the last step is of the last weights.
    rows = [json.loads(line) for line in Path(str(base.data.eval)).read_text().splitlines()]
    source = ModelSource(str(control.student))
    model, tokenizer = load_model(source, "classification"), load_tokenizer(source)
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, max_length=32, return_tensors="pt")
    names = [model.config.label2id[row["label"]] for row in rows]
    with torch.inference_mode():
        wanted = torch.nn.functional.cross_entropy(model(**batch).logits, torch.tensor(names))
    assert control.summary["best"]["losses"]["loss/label"] == pytest.approx(float(wanted), rel=1e-4)


def test_early_stopping_goes_by_the_loss(tmp_path: Path) -> None:
    train = TRAIN | {"max_steps": 30, "learning_rate": 0.3, "schedule": "constant"}
    train |= {"early_stopping": {"patience": 3, "min_delta": 0.05}}
    run = raybrew.distill(experiment_of(tmp_path, "bert", "classification", distill=LAYERS, train=train))
    losses = [line["eval/loss"] for line in evals(run)]
    assert run.summary["ended_by"] == "early_stopping"
    assert 4 <= len(losses) < 30
    assert losses[-4] - min(losses[-3:]) <= 0.05, "the last three were no better by as much"
    assert run.summary["best"]["value"] == min(losses)


def test_capture_plan_and_distill_mean_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation rows, each once; then nothing runs the teacher any more."""
    base = experiment_of(tmp_path, "bert", "qa", distill=LAYERS, train=TRAIN)
    (tmp_path / "eval.jsonl").write_text(
        (tmp_path / "eval.jsonl").read_text().replace("Lisbon", "Zagreb").replace("Paris", "Vilna")
    )
    planned = raybrew.plan(base).stores[0]
    store = raybrew.capture(base)
    assert planned.rows == store.num_rows
    alone = changed(base, name="alone", data={"eval": None})
    assert raybrew.plan(alone).stores[0].rows < store.num_rows
    monkeypatch.setattr(compute, "forward", lambda *_: pytest.fail("the teacher ran"))
    run = raybrew.distill(changed(base, teacher={"source": "store"}))
    assert run.summary["chosen"]["by"] == "loss"


def test_a_store_without_evaluation_rows_is_not_enough(tmp_path: Path) -> None:
    base = experiment_of(tmp_path, "bert", "classification", distill=LAYERS, train=TRAIN)
    (tmp_path / "eval.jsonl").write_text(json.dumps({"text": "Nothing like it anywhere.", "label": "no"}) + "\n")
    raybrew.capture(changed(base, data={"eval": None}))
    with pytest.raises(StoreError, match=r"1 of .* rows are not in this store"):
        raybrew.distill(changed(base, teacher={"source": "store"}))
    assert raybrew.distill(base).summary["chosen"]["by"] == "loss"


def test_rows_that_the_teacher_cannot_compute_reach_no_loss(tmp_path: Path) -> None:
    base = experiment_of(tmp_path, "bert", "classification", train=TRAIN, student={"shape": "T3", "init": "random"})
    folder = tmp_path / "teacher"
    model, tokenizer = load_model(ModelSource(str(folder)), "classification"), load_tokenizer(ModelSource(str(folder)))
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    rows.append({"text": "zebras zebras", "label": "no"})
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = {piece for line in rows_texts(tmp_path / "train.jsonl") for piece in tokenizer(line)["input_ids"]}
    (piece, *_) = sorted(set(tokenizer("zebras zebras")["input_ids"]) - seen)
    with torch.no_grad():
        model.get_input_embeddings().weight[piece] = float("nan")
    model.save_pretrained(folder)
    run = raybrew.distill(changed(base, data={"on_bad_row": "skip"}))
    assert "evaluation losses leave out 1 of 5 rows" in notes(run)
    assert all(line["eval/loss"] == line["eval/loss"] for line in evals(run))
    assert run.summary["rows"]["eval"] == 5
    (tmp_path / "fewer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    fewer = raybrew.distill(changed(base, data={"eval": str(tmp_path / "fewer.jsonl")}))
    assert [line["eval/loss"] for line in evals(fewer)] == pytest.approx([line["eval/loss"] for line in evals(run)])


def rows_texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_rows_of_other_tokens_reach_no_loss_on_tokens(tmp_path: Path) -> None:
    """A vocabulary trimmed to the training rows cuts a new word otherwise than the teacher does."""
    base = experiment_of(tmp_path, "bert", "classification", distill=LAYERS, train=TRAIN)
    (tmp_path / "eval.jsonl").write_text(
        (tmp_path / "eval.jsonl").read_text() + json.dumps({"text": "Quarks bounce, zebras!", "label": "yes"}) + "\n"
    )
    small = changed(base, student={"vocabulary": {}})
    assert "evaluation losses leave out 1 of 5 rows" in notes(raybrew.distill(small))
    live = raybrew.distill(changed(small, teacher={"source": "live"}))
    assert "leave out" not in notes(live), "a live teacher reads the student's tokens"
    rows = raybrew.distill(changed(small, distill={"matches": [{"loss": "pooled_cos"}]}))
    assert "leave out" not in notes(rows), "what is compared by rows needs no tokens"


def test_answers_of_other_tokens_are_compared_by_their_characters(tmp_path: Path) -> None:
    values = experiment_of(tmp_path, "bert", "qa").written()
    other = save_family_teacher("roberta", tmp_path / "student", "qa", LABELS["qa"], seed=1)
    run = raybrew.distill(
        build_experiment({**values, "student": {"model": other}, "distill": {"temperature": 2.0}, "train": TRAIN})
    )
    assert all(
        line["eval/loss/kd"] == pytest.approx(line["eval/loss"]) and line["eval/loss"] > 0 for line in evals(run)
    )
    assert "leave out" not in notes(run)


def test_losses_of_several_tasks_stand_beside_their_metrics(tmp_path: Path) -> None:
    parts = {}
    for task in ("classification", "tagging"):
        folder = tmp_path / task
        folder.mkdir()
        parts[task] = {
            "task": {"kind": task, **TASKS[task]},
            "data": {"train": rows_of(task, folder / "train.jsonl"), "eval": rows_of(task, folder / "eval.jsonl", 4)},
            "teacher": {"model": save_family_teacher("bert", folder / "teacher", task, LABELS[task])},
        }
    parts["tagging"]["weight"] = 0.5
    plain = experiment_of(tmp_path, "bert", "classification", train=TRAIN).written()
    values = {name: plain[name] for name in ("name", "student", "train", "store")}
    for file in (tmp_path / "classification" / "teacher").glob("*token*"):
        shutil.copy(file, tmp_path / "tagging" / "teacher")  # layers are compared token by token
    for distill in ({"temperature": 2.0}, LAYERS):
        run = raybrew.distill(
            build_experiment({**values, "task": {"kind": "multi", "tasks": parts}, "distill": distill})
        )
        best, heads = run.summary["best"], distill is not LAYERS
        assert best["metric"] == run.summary["chosen"]["by"] == ("mean" if heads else "loss")
        assert {name.split(".")[0] for name in best["losses"]} == {"loss", "loss/classification", "loss/tagging"}
        assert not any("loss" in name for name in best["metrics"])
        rows = {task: len((tmp_path / task / "train.jsonl").read_text().splitlines()) for task in parts}
        tau = build_experiment({**values, "task": {"kind": "multi", "tasks": parts}, "distill": distill}).task.tau
        whole = sum(count**tau for count in rows.values())
        shares = {task: count**tau / whole for task, count in rows.items()}
        total = sum(
            value * shares[name.removeprefix("loss/").split(".")[0]] * (0.5 if "tagging" in name else 1.0)
            for name, value in best["losses"].items()
            if name != "loss"
        )
        assert best["losses"]["loss"] == pytest.approx(total, rel=1e-5)


def test_losses_of_different_objectives_name_no_best(tmp_path: Path) -> None:
    base = experiment_of(tmp_path, "bert", "classification", distill=LAYERS, train=TRAIN)
    one = raybrew.distill(base)
    again = raybrew.distill(changed(base, train={"learning_rate": 1e-5, "seed": 3}))
    both = compare([one.record, again.record])
    assert both.best is not None
    assert both.best.quality is not None
    assert both.best.quality.mean == min(one.summary["best"]["value"], again.summary["best"]["value"])
    assert LOSSES_DIFFER not in both.notes
    assert both.best.gain is None
    assert any("trains the head" in caution for caution in decide(both).cautions)
    other = raybrew.distill(changed(base, distill={"matches": [{"loss": "pooled_cos"}]}))
    mixed = compare([one.record, other.record])
    assert mixed.best is None
    assert LOSSES_DIFFER in mixed.notes
    assert "evaluated" not in decide(mixed).headline


def test_the_best_so_far_of_an_unfinished_run(tmp_path: Path) -> None:
    run = raybrew.distill(experiment_of(tmp_path, "bert", "classification", distill=LAYERS, train=TRAIN))
    wanted = load_run(run.path).best
    (run.path / "summary.json").unlink()
    found = load_run(run.path).best
    assert found is not None
    assert wanted is not None
    assert (found.metric, found.value, found.metrics, found.step) == (
        wanted.metric,
        wanted.value,
        wanted.metrics,
        wanted.step,
    )
    assert not found.final
