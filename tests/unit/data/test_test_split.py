"""data.test: rows that choose nothing, of a file or a share of the training rows, and finished models on any rows."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tiny_teacher import make_teacher

import raybrew
from raybrew.config.loading import build_experiment
from raybrew.data.rows import in_share, load_rows, row_ids
from raybrew.errors import ConfigError, DataError, RunError
from raybrew.pipeline.resolve import resolve
from raybrew.pipeline.rows import read_rows
from raybrew.runs.scoring import score_run
from raybrew.tasks.scores import load_scores

SHAPE = {"layers": 1, "hidden": 32, "heads": 2, "feed_forward": 48}


def write_rows(path: Path, seed: int, count: int, labelled: bool = True) -> Path:
    draw = random.Random(seed)
    rows = [{"text": f"kola mane {draw.randrange(10**6)}", "label": str(draw.randrange(3))} for _ in range(count)]
    lines = [json.dumps(row if labelled else {"text": row["text"]}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_teacher(folder / "teacher")
    for seed, (name, count) in enumerate({"train": 120, "eval": 24, "test": 36, "fresh": 20}.items()):
        write_rows(folder / f"{name}.jsonl", seed, count)
    write_rows(folder / "texts.jsonl", 0, 120, labelled=False)
    return folder


def experiment(project: Path, name: str = "x", data: dict | None = None, **sections):
    given = {"train": str(project / "train.jsonl"), "eval": str(project / "eval.jsonl"), **(data or {})}
    return build_experiment(
        {
            "name": name,
            "task": {"kind": "classification", "max_length": 16},
            "data": {key: value for key, value in given.items() if value is not None},
            "teacher": {"model": str(project / "teacher")},
            "student": {"shape": SHAPE},
            "train": {"epochs": 1, "device": "cpu"},
            "store": {"storage_path": str(project / "runs")},
            **sections,
        }
    )


def read(config):
    return read_rows(resolve(config).tasks[0], None, lambda message: None)


def ids_of(table) -> set[bytes]:
    return {row.tobytes() for row in row_ids(table)}


def test_share_is_set_aside_from_labelled_and_unlabelled_rows(project):
    rows = read(experiment(project, data={"test": "25%", "unlabeled": str(project / "texts.jsonl")}))
    whole = ids_of(load_rows(experiment(project).data, "train", resolve(experiment(project)).tasks[0].task).table)
    tested, learnt = ids_of(rows.test.table), ids_of(rows.training)
    assert tested
    assert not tested & learnt
    assert tested | ids_of(rows.training.slice(0, rows.num_labelled)) == whole
    assert 0.1 < len(tested) / len(whole) < 0.4
    assert rows.num_unlabeled == rows.num_labelled == 120 - len(tested)


def test_share_goes_by_content_alone(project, tmp_path):
    lines = (project / "train.jsonl").read_text().splitlines()
    random.Random(5).shuffle(lines)
    (tmp_path / "other.jsonl").write_text("\n".join(lines + lines[:30]) + "\n")
    one = read(experiment(project, data={"test": "25%"}))
    other = read(experiment(project, data={"train": str(tmp_path / "other.jsonl"), "test": "25 %"}))
    assert ids_of(one.test.table) == ids_of(other.test.table)
    assert not ids_of(other.test.table) & ids_of(other.training), "a repeated text is on one side"
    larger = read(experiment(project, data={"test": "50%"}))
    assert ids_of(one.test.table) < ids_of(larger.test.table)


def test_size_of_the_share():
    ids = np.random.default_rng(0).integers(0, 256, (20_000, 16), np.uint8)
    for share in (0.01, 0.1, 0.5, 0.999):
        assert in_share(ids, share).mean() == pytest.approx(share, abs=0.012)


def test_subset_of_training_rows_does_not_change_the_test_rows(project):
    all_rows = read(experiment(project, data={"test": "25%"}))
    few = read(experiment(project, data={"test": "25%", "train_rows": 20}))
    assert len(few.training) == 20
    assert ids_of(few.test.table) == ids_of(all_rows.test.table)
    assert not ids_of(few.training) & ids_of(few.test.table)


@pytest.mark.parametrize("share", ["0%", "100%", "250%", "0.0 %"])
def test_impossible_share_names_what_is_allowed(project, share):
    with pytest.raises(ConfigError) as caught:
        experiment(project, data={"test": share})
    assert "data.test" in str(caught.value)


def test_share_needs_training_rows(project):
    with pytest.raises(ConfigError, match=r"data\.test"):
        experiment(project, data={"train": None, "unlabeled": str(project / "texts.jsonl"), "test": "10%"})


def test_share_without_rows_is_an_error(project):
    with pytest.raises(DataError, match=r"data\.test"):
        read(experiment(project, data={"test": "0.0001%"}))


def test_missing_file_is_found_before_anything_starts(project):
    with pytest.raises(ConfigError, match=r"data\.test"):
        experiment(project, data={"test": str(project / "nowhere.jsonl")})


def test_test_rows_may_not_vary_in_a_sweep(project):
    with pytest.raises(ConfigError, match=r"data\.test"):
        experiment(project, sweep={"space": {"data.test": ["10%", "20%"]}})


def test_rows_that_only_score_are_no_part_of_a_run(project):
    plain = experiment(project)
    for verb in ("distill", "finetune"):
        with_file = experiment(project, data={"test": str(project / "test.jsonl"), "test_rows": 5})
        assert with_file.run_id(verb) == plain.run_id(verb)
        assert experiment(project, data={"test": "10%"}).run_id(verb) != plain.run_id(verb)
        assert "test" not in plain.identity(verb)["data"]


@pytest.fixture(scope="module")
def run(project):
    return raybrew.distill(experiment(project, data={"test": str(project / "test.jsonl")}), report=False)


def test_run_is_scored_on_rows_that_chose_nothing(project, run):
    test, teacher = run.summary["test"], run.summary["teacher"]["test"]
    assert (test["rows"], teacher["rows"], run.summary["chosen"]["rows"]) == (36, 36, 24)
    assert run.summary["chosen"]["checkpoints"] == 1
    for name, expected, count in (
        ("test", test["metrics"], 36),
        ("teacher-test", teacher["metrics"], 36),
        ("eval", run.summary["best"]["metrics"], 24),
        ("teacher-eval", run.summary["teacher"]["metrics"], 24),
    ):
        scores = load_scores(run.path / "scores" / f"{name}.npz")
        assert scores is not None
        assert len(scores) == count
        assert scores.metrics() == pytest.approx(expected, abs=1e-6)
    assert load_scores(run.path / "scores/test.npz").key == load_scores(run.path / "scores/teacher-test.npz").key


def test_same_command_scores_nothing_twice_and_other_test_rows_anew(project, run, monkeypatch):
    again = raybrew.distill(experiment(project, data={"test": str(project / "test.jsonl")}), report=False)
    assert again.already_done
    assert again.summary == run.summary
    other = raybrew.distill(experiment(project, data={"test": str(project / "fresh.jsonl")}), report=False)
    assert other.already_done
    assert (other.path, other.summary["test"]["rows"]) == (run.path, 20)
    raybrew.distill(experiment(project, data={"test": str(project / "test.jsonl")}), report=False)


def test_scoring_a_run_whose_student_is_gone_says_so(project):
    config = experiment(project, "gone", data={"test": str(project / "test.jsonl")})
    done = raybrew.distill(config, report=False, score_test=False)
    assert "test" not in done.summary
    done.student.rename(done.path / "elsewhere")
    with pytest.raises(RunError, match="train it again"):
        score_run(done.path, raybrew.QuietReporter(), resolve(config))
    (done.path / "elsewhere").rename(done.student)
    assert score_run(done.path, raybrew.QuietReporter()).rows == 36, "by the run's own configuration"


def test_finished_student_is_evaluated_on_any_rows(project, run):
    fresh = str(project / "fresh.jsonl")
    by_option = raybrew.evaluate(experiment(project), data=fresh)
    by_override = raybrew.evaluate(experiment(project, data={"eval": fresh}))
    assert by_option.rows == by_override.rows == 20
    assert by_option.metrics == by_override.metrics
    assert by_option.model == by_override.model == str(run.student)
    fewer = raybrew.evaluate(experiment(project, data={"eval_rows": 7, "train_rows": 50}))
    assert (fewer.rows, fewer.model) == (7, str(run.student))
    on_test = raybrew.evaluate(experiment(project, data={"test": str(project / "test.jsonl")}), split="test")
    assert on_test.metrics == run.summary["test"]["metrics"]


def test_rows_of_one_label_and_without_training_file_can_be_scored(project, run, tmp_path):
    rows = [json.loads(line) for line in (project / "fresh.jsonl").read_text().splitlines()]
    (tmp_path / "ones.csv").write_text("text,label\n" + "".join(f"{r['text']},1\n" for r in rows if r["label"] == "1"))
    config = experiment(project).model_copy(
        update={"data": experiment(project).data.model_copy(update={"train": str(project / "gone.jsonl")})}
    )
    assert raybrew.evaluate(config, model=str(run.student), data=str(tmp_path / "ones.csv")).rows > 0


def test_other_training_settings_are_another_student(project, run):
    with pytest.raises(RunError, match="no student yet"):
        raybrew.evaluate(experiment(project, train={"epochs": 3, "device": "cpu"}))


def test_several_students_that_fit_are_listed(project):
    configs = [experiment(project, "several", data={"train_rows": count}) for count in (60, 90)]
    for config in configs:
        raybrew.distill(config, report=False)
    with pytest.raises(RunError, match="--run-id") as caught:
        raybrew.evaluate(experiment(project, "several"))
    assert all(config.run_id("distill") in str(caught.value) for config in configs)
    assert raybrew.evaluate(experiment(project, "several"), run_id=configs[0].run_id("distill")).rows == 24


def test_teacher_that_was_trained_is_found_for_other_evaluation_rows(project):
    finetune = {"teacher": {"model": str(project / "teacher"), "finetune": {"epochs": 1, "device": "cpu"}}}
    config = experiment(project, "taught", **finetune)
    teacher = raybrew.finetune(config)
    fresh = experiment(project, "taught", data={"eval": str(project / "fresh.jsonl")}, **finetune)
    assert raybrew.evaluate(fresh, model="teacher").model == str(teacher.student)
    student = raybrew.distill(fresh, report=False)
    assert student.summary["teacher"]["model"] == str(teacher.student)
    less = experiment(project, "taught", data={"train_rows": 60}, **finetune)
    with pytest.raises(RunError, match="not trained yet"):
        raybrew.distill(less, report=False)  # other training rows make another teacher
    assert raybrew.evaluate(less, model="teacher").model == str(teacher.student)


def test_each_of_several_tasks_has_test_rows_of_its_own(project):
    def part(test):
        return {
            "task": {"kind": "classification", "max_length": 16},
            "data": {"train": str(project / "train.jsonl"), "eval": str(project / "eval.jsonl"), "test": test},
            "teacher": {"model": str(project / "teacher")},
        }

    config = build_experiment(
        {
            "name": "two",
            "task": {"kind": "multi", "tasks": {"a": part("20%"), "b": part(str(project / "test.jsonl"))}},
            "student": {"shape": SHAPE},
            "train": {"epochs": 1, "device": "cpu"},
            "store": {"storage_path": str(project / "runs")},
        }
    )
    done = raybrew.distill(config, report=False)
    test = done.summary["test"]
    assert test["value"] == pytest.approx((test["metrics"]["a.accuracy"] + test["metrics"]["b.accuracy"]) / 2)
    assert set(done.summary["teacher"]["test"]["metrics"]) == set(test["metrics"])
    assert len(load_scores(done.path / "scores/b/test.npz")) == 36
    with pytest.raises(ConfigError, match="--task"):
        raybrew.evaluate(config, data=str(project / "fresh.jsonl"))
    assert raybrew.evaluate(config, task="a", data=str(project / "fresh.jsonl")).rows == 20
