"""Experiment files of several teachers and several tasks: overrides, views, identities, and all problems at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raybrew.config.loading import build_experiment
from raybrew.config.views import choose_task, task_views, teacher_views
from raybrew.errors import ConfigError
from raybrew.records.runs import load_run
from raybrew.records.sweeps import CANDIDATE, CONTROL, KD_ONLY
from tests.told import told
from unit.sweep_helpers import conductor_of

TEACHERS: dict[str, Any] = {
    "name": "teachers",
    "data": {"train": "glue/rte"},
    "teacher": {"members": {"a": {"model": "x/a", "weight": 2.0}, "b": {"model": "x/b", "source": "store"}}},
    "student": {"shape": "T3"},
}
TASKS: dict[str, Any] = {
    "name": "tasks",
    "task": {
        "kind": "multi",
        "tasks": {
            "one": {"data": {"train": "glue/rte"}, "teacher": {"model": "x/one"}},
            "two": {
                "task": {"metric": "mcc"},
                "data": {"train": "glue/mrpc"},
                "teacher": {"members": {"a": {"model": "x/a"}, "b": {"model": "x/b"}}},
                "weight": 0.5,
            },
        },
    },
    "student": {"shape": "T3"},
}


def problems(base: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_experiment({**base, **changes}, check_files=False)
    return told(caught.value)


def test_one_teacher_and_one_task_are_their_own_views() -> None:
    plain = build_experiment({"name": "x", "teacher": {"model": "m"}})
    assert task_views(plain) == (("default", "", plain),)
    assert teacher_views(plain) == (("default", "", plain),)


def test_members_become_single_teachers_with_runs_of_their_own() -> None:
    experiment = build_experiment(TEACHERS)
    views = {name: view for _, name, view in teacher_views(experiment)}
    assert {name: view.teacher.model for name, view in views.items()} == {"a": "x/a", "b": "x/b"}
    assert views["b"].teacher.source == "store"
    assert views["a"].run_id("finetune") != views["b"].run_id("finetune")
    single = build_experiment({"name": "teachers", "data": {"train": "glue/rte"}, "teacher": {"model": "x/a"}})
    assert views["a"].run_id("finetune") == single.run_id("finetune")  # the same training is not done twice
    members = {**TEACHERS["teacher"]["members"], "a": {"model": "x/a", "weight": 3.0}}
    heavier = build_experiment({**TEACHERS, "teacher": {"members": members}})
    assert heavier.run_id("distill") != experiment.run_id("distill")


def test_views_of_tasks_have_their_own_sections_and_matches() -> None:
    matches = [{"loss": "hidden_mse", "teacher": "one"}, {"loss": "cos", "teacher": "two/b"}]
    experiment = build_experiment({**TASKS, "distill": {"matches": matches}, "data": {"cache": "/elsewhere"}})
    one, two = (view.experiment for view in task_views(experiment))
    assert (one.data.train, two.data.train, two.task.metric) == ("glue/rte", "glue/mrpc", "mcc")
    assert one.data.cache == two.data.cache == "/elsewhere"
    assert [(match.loss, match.teacher) for match in one.distill.matches] == [("hidden_mse", None)]
    assert [(match.loss, match.teacher) for match in two.distill.matches] == [("cos", "b")]
    assert choose_task(experiment, "two").experiment == two
    with pytest.raises(ConfigError, match=r"--task: given 'tow'; allowed: one, two; did you mean 'two'"):
        choose_task(experiment, "tow")
    with pytest.raises(ConfigError, match="--task: required"):
        choose_task(experiment, None)


def test_all_problems_of_several_teachers_at_once() -> None:
    found = problems(
        TEACHERS,
        teacher={
            "model": "m",
            "average": "probabilities",
            "members": {"a": {"model": "x", "weigth": 1}, "b c": {"model": "y"}},
        },
    )
    assert "teacher.members.a.weigth: unknown" in found
    assert "teacher.members.b c: value" in found
    assert "teacher.members.c.model: required" in problems(TEACHERS, teacher={"members": {"c": {}}})
    found = problems(
        TEACHERS,
        teacher={"model": "m", "average": "probabilities", "members": {"a": {"model": "x", "weight": 0.0}}},
        student={"shape": "T3", "teacher": "aa"},
        distill={"kd_loss": {"kind": "mse"}, "matches": [{"loss": "cos"}, {"loss": "pkd", "teacher": "c"}]},
    )
    for words in (
        "teacher.model: conflict",
        "teacher.members: empty",
        "student.teacher: unknown",
        "teacher.average: conflict",
        "distill.matches.0.teacher: required",
        "distill.matches.1.teacher: unknown",
    ):
        assert words in found


def test_probabilities_need_a_softmax_over_classes() -> None:
    teacher = {**TEACHERS["teacher"], "average": "probabilities"}
    for kind, allowed in (("classification", True), ("tagging", True), ("qa", False)):
        values = {"name": "x", "task": {"kind": kind}, "teacher": teacher, "student": {"shape": "T3"}}
        if allowed:
            build_experiment(values, check_files=False)
        else:
            assert "teacher.average: conflict" in problems(values)


def test_a_single_teacher_takes_no_names() -> None:
    found = problems(
        {"name": "x", "teacher": {"model": "m", "average": "probabilities"}, "student": {"shape": "T3"}},
        distill={"matches": [{"loss": "cos", "teacher": "a"}]},
    )
    assert "distill.matches.0.teacher: unused" in found
    assert "teacher.average: unused" in found


def test_all_problems_of_several_tasks_at_once() -> None:
    found = problems(
        TASKS,
        data={"train": "glue/sst2"},
        teacher={"model": "m"},
        student={"shape": "T3", "teacher": "onee"},
        train={"parallel": "fsdp"},
        distill={
            "matches": [
                {"loss": "hidden_mse"},
                {"loss": "cos", "teacher": "three"},
                {"loss": "cos", "teacher": "one", "layers": [[0]]},
            ]
        },
    )
    for words in (
        "data: conflict",
        "teacher: conflict",
        "student.teacher: unknown",
        "train.parallel: conflict",
        "distill.matches.0.teacher: required",
        "distill.matches.1.teacher: unknown",
        "distill.matches.2.layers: value",
    ):
        assert words in found
    assert found.count("distill.matches.2.layers: value") == 1


def test_problems_inside_a_task_have_its_key() -> None:
    fewer_rows_than_workers = {"finetune": {"batch_size": 4, "workers": 8}}
    task = {
        "kind": "multi",
        "tasks": {
            "one": {"task": {"metric": "acc"}, "data": {"trian": "x"}},
            "two": {"teacher": fewer_rows_than_workers},
        },
    }
    found = problems({"name": "x", "task": task})
    assert "task.tasks.one.task.metric: unknown" in found
    assert "task.tasks.one.data.trian: unknown" in found
    right = {"teacher": {"model": "m"}}
    only_two = {"kind": "multi", "tasks": {"one": right, "two": {"teacher": fewer_rows_than_workers}}}
    found = problems({"name": "x", "task": only_two})
    assert "task.tasks.two.teacher.model: required" in found
    assert "task.tasks.two.teacher.finetune.workers: value" in found
    assert not any("tasks.one" in problem for problem in found)
    assert "task.tasks: value" in problems({"name": "x", "task": {"kind": "multi", "tasks": {"one": {}}}})


def test_a_sweep_of_several_tasks_has_controls_without_unlabelled_rows_of_any(tmp_path: Path) -> None:
    rows = {"train": "a", "eval": "b"}
    tasks: dict[str, Any] = {
        "one": {"data": rows, "teacher": {"model": "hub/one"}},
        "two": {"data": {**rows, "unlabeled": "c"}, "teacher": {"model": "hub/two"}},
    }
    sweep: dict[str, Any] = {"space": {"distill.temperature": [1, 4]}, "search": "grid"}
    values: dict[str, Any] = {
        "name": "x", "task": {"kind": "multi", "tasks": tasks}, "student": {"shape": {"layers": 2}},
        "distill": {"hard_label_weight": 0.5}, "store": {"storage_path": str(tmp_path)}, "sweep": sweep,
    }  # fmt: skip
    experiment = build_experiment(values, check_files=False)
    conductor = conductor_of(experiment)
    job = conductor.next()
    assert job is not None
    assert [one.role for one in conductor.jobs.values()] == [CONTROL, KD_ONLY, CANDIDATE]
    control, teacher_alone, student = (one.experiment for one in conductor.jobs.values())
    assert [view.experiment.data.unlabeled for view in task_views(control)] == [None, None]
    assert (control.distill.kd_weight, control.distill.hard_label_weight) == (0.0, 1.0)
    assert [view.experiment.data.unlabeled for view in task_views(teacher_alone)] == [None, "c"]
    # All of them are judged alike, so that gains are told.
    folders = []
    for number, one in enumerate((control, teacher_alone, student)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "identity.json").write_text(json.dumps({"verb": "distill", "identity": one.identity("distill")}))
        folders.append(folder)
    assert len({load_run(folder).evaluation_key for folder in folders}) == 1
    sweep["space"] = {"task.tasks.one.data.eval": ["b", "d"], "task.tasks.two.task.metric": ["mcc", "accuracy"]}
    found = problems(values)
    assert "sweep.space.task.tasks.one.data.eval: conflict" in found
    assert "sweep.space.task.tasks.two.task.metric: conflict" in found
    sweep["space"] = {"distill.temperature": [1, 4]}
    for task in tasks.values():
        task["data"] = {"train": "a"}
    assert "task.tasks.<name>.data.eval: required" in problems(values)


def test_a_sweep_without_labelled_rows_has_no_controls(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "name": "x", "data": {"unlabeled": "c", "eval": "b"}, "teacher": {"model": "hub/one"},
        "student": {"shape": "T3"}, "store": {"storage_path": str(tmp_path)},
        "sweep": {"space": {"distill.temperature": [1, 4]}},
    }  # fmt: skip
    assert "sweep.controls: required" in problems(values)
    one = {key: values[key] for key in ("data", "teacher")}
    tasks = {"kind": "multi", "tasks": {"one": one, "two": one}}
    several = {key: value for key, value in values.items() if key not in one} | {"task": tasks}
    assert "sweep.controls: required" in problems(several)
    # No row is read for the length of controls that will not be.
    without = build_experiment({**values, "sweep": {**values["sweep"], "controls": False}}, check_files=False)
    conductor = conductor_of(without, steps_of=lambda candidate, control: pytest.fail("no row is read"))
    assert not conductor.over()
    assert {trial.role for trial in conductor.trials.values()} == {CANDIDATE}
