"""Experiments that are written in Python: short forms, errors, rows in memory, and runs of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

import raybrew
from raybrew.config import Experiment, public
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.config.rows import table_name
from raybrew.data.rows import load_rows
from raybrew.errors import ConfigError, DataError, EnvironmentProblem
from raybrew.pipeline.resolve import resolve
from raybrew.tasks.base import Task
from tests.tiny_teacher import make_rows, make_teacher

ROWS = [{"text": f"row {number}", "label": ("bad", "good")[number % 2]} for number in range(20)]
LONG: dict[str, Any] = {
    "name": "x",
    "teacher": {"model": "owner/model"},
    "student": {"shape": "T3"},
    "distill": {"method": "tinybert"},
    "train": {"epochs": 3},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(**values: Any) -> Experiment:
    return raybrew.Experiment(**{"name": "x", "teacher": "owner/model", "student": "T3", "distill": "kd"} | values)


def task_of(experiment: Experiment) -> Task:
    return resolve(experiment).tasks[0].task


def problems(**values: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        made(**values)
    return tuple(map(str, caught.value.problems))


# Sections


@pytest.mark.parametrize("name", public.__all__)
def test_a_section_calls_itself_as_raybrew_calls_it(name: str) -> None:
    section = getattr(raybrew, name)
    required = {"Augment": {"kind": "masking"}, "Match": {"loss": "cos"}, "MultiTask": None}
    required |= {"Shape": {"layers": 1}, "TeacherMember": {"model": "a/b"}}
    values = required.get(name, {})
    if values is not None:
        assert repr(section(**values)).startswith(f"{name}(")
        assert eval(repr(section(**values)), vars(public)) == section(**values)


def test_an_experiment_of_sections_is_the_one_of_a_file(folder: Path) -> None:
    experiment = raybrew.Experiment(
        name="x",
        teacher="owner/model",
        student="T3",
        distill=raybrew.Distill(method="tinybert"),
        train=raybrew.Train(epochs=3),
    )
    assert experiment == build_experiment(LONG)
    assert experiment.run_id("distill") == build_experiment(LONG).run_id("distill")
    assert pickle.loads(pickle.dumps(experiment)) == experiment
    assert load_experiment(experiment.to_yaml(folder / "x.yaml")) == experiment
    assert repr(experiment) == (
        "Experiment(name='x', teacher=Teacher(model='owner/model'), student=StudentConfig(shape='T3'), "
        "distill=Distill(method='tinybert'), train=Train(epochs=3))"
    )


def test_all_problems_at_once_as_of_a_file() -> None:
    wrong = {"nme": "x", "teacher": "a/b", "student": "T33", "train": {"epoch": 3}, "distill": "tinybrt"}
    with pytest.raises(ConfigError) as of_values:
        build_experiment(wrong)
    with pytest.raises(ConfigError) as caught:
        raybrew.Experiment(**wrong)
    assert caught.value.problems == of_values.value.problems
    assert [problem.key for problem in caught.value.problems] == [
        *("nme", "student", "train.epoch", "distill.method", "name")
    ]
    assert all("did you mean" in problem.message for problem in caught.value.problems[:-1])


def test_a_section_alone_raises_the_same_words() -> None:
    with pytest.raises(ConfigError) as caught:
        raybrew.Train(epoch=3)
    (line,) = map(str, caught.value.problems)
    assert line in problems(train={"epoch": 3})


@pytest.mark.parametrize("given", [(3,), ("a", "b"), (["a/x", "b/x"],), ([3],)])
def test_what_is_no_short_form_of_a_teacher(given: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="teacher: given"):
        raybrew.Teacher(*given)


# Short forms


@pytest.mark.parametrize(
    ("section", "short", "long"),
    [
        ("teacher", "owner/model", {"model": "owner/model"}),
        ("teacher", ["a/big.v2", {"model": "b/small", "weight": 2}],
         {"members": {"big-v2": {"model": "a/big.v2"}, "small": {"model": "b/small", "weight": 2}}}),
        ("teacher", {"members": {"a": "a/b", "c": "c/d"}}, {"members": {"a": {"model": "a/b"}, "c": {"model": "c/d"}}}),
        ("student", "T4-tiny", {"shape": "T4-tiny"}),
        ("student", "owner/model", {"model": "owner/model"}),
        ("student", "some-model", {"model": "some-model"}),
        ("distill", "tinybert", {"method": "tinybert"}),
        ("distill", {"kd_loss": "mse"}, {"kd_loss": {"kind": "mse"}}),
        ("task", "tagging", {"kind": "tagging"}),
    ],
)  # fmt: skip
def test_a_short_form_is_the_long_one(section: str, short: Any, long: Any, folder: Path) -> None:
    base = {"name": "x", "teacher": "owner/model", "student": "T3", "distill": "kd"}
    one, other = build_experiment(base | {section: short}), build_experiment(base | {section: long})
    assert one == other
    assert one.run_id("distill") == other.run_id("distill")
    (folder / "x.yaml").write_text(json.dumps(base | {section: short}), encoding="utf-8")
    assert load_experiment("x.yaml") == one


def test_a_folder_of_a_name_like_a_shape_is_a_model(folder: Path) -> None:
    (line,) = problems(student="T3-smal")
    assert line.startswith("student: given 'T3-smal'; allowed: a shape (T6, T3, ")
    assert line.endswith("did you mean 'T3-small'?")
    (folder / "T3-smal").mkdir()
    assert made(student="T3-smal").student.model == "T3-smal"


def test_short_forms_of_several_tasks() -> None:
    parts = {"a": {"task": "regression", "teacher": "owner/a"}, "b": {"teacher": ["owner/b", "owner/c"]}}
    task = raybrew.Experiment(name="x", task={"kind": "multi", "tasks": parts}, distill="kd", student="T3").task
    assert task.tasks["a"].task.kind == "regression"  # type: ignore[union-attr]
    assert list(task.tasks["b"].teacher.members) == ["b", "c"]  # type: ignore[union-attr]


def test_files_and_overrides_lay_short_forms_over_one_another(folder: Path) -> None:
    (folder / "base.yaml").write_text("name: x\nteacher: owner/model\nstudent: T3\ndistill: kd\n", encoding="utf-8")
    (folder / "x.yaml").write_text("extends: base.yaml\nstudent: {init: random}\n", encoding="utf-8")
    student = load_experiment("x.yaml").student
    assert (student.shape, student.init) == ("T3", "random")
    student = load_experiment("x.yaml", ["student=T6"]).student
    assert (student.shape, student.init) == ("T6", "random")
    student = load_experiment("base.yaml", ["student=owner/other"]).student
    assert (student.shape, student.model) == (None, "owner/other")
    assert load_experiment("base.yaml", ["teacher=[a/b, c/d]"]).teacher.model is None


def test_an_interpolated_student_is_read_when_its_value_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPE", "T6")
    text = "name: x\nteacher: owner/model\nstudent: ${oc.env:SHAPE}\ndistill: kd\n"
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    assert load_experiment("x.yaml").student.shape == "T6"


def test_a_sweep_of_short_forms() -> None:
    space = {"student": ["T3", "T6"], "distill": ["kd", "tinybert"]}
    long = {"student": [{"shape": "T3"}, {"shape": "T6"}], "distill": [{"method": "kd"}, {"method": "tinybert"}]}
    experiment = made(data={"train": ROWS, "eval": ROWS}, sweep=raybrew.SweepConfig(space=space, search="grid"))
    assert experiment.sweep is not None
    assert experiment.sweep.search.kind == "grid"
    assert build_experiment(LONG | {"data": experiment.data, "sweep": {"space": long}}).sweep is not None
    assert load_experiment(experiment.to_yaml("x.yaml")) == experiment
    assert "did you mean 'T6'" in problems(data={"train": ROWS, "eval": ROWS}, sweep={"space": {"student": ["T66"]}})[0]


# Rows


def containers() -> dict[str, Any]:
    frame = pd.DataFrame(ROWS)
    table = pa.Table.from_pylist(ROWS)
    text = pa.schema([("text", pa.large_string()), ("label", pa.dictionary(pa.int8(), pa.string()))])
    return {
        "list": ROWS,
        "pandas": frame,
        "pandas by another index": frame.set_index(pd.Index(range(7, 27))),
        "pandas, other columns first": frame[["label", "text"]],
        "pandas categories": frame.astype({"label": "category"}),
        "arrow": table,
        "arrow in pieces": pa.concat_tables([table.slice(0, 3), table.slice(3)]),
        "arrow of other types": table.cast(text),
        "dataset": datasets.Dataset.from_list(ROWS),
        "part of a dataset": datasets.Dataset.from_list([*ROWS, *ROWS]).select(range(20)),
    }


@pytest.mark.parametrize("name", containers())
def test_rows_are_known_by_their_content(name: str, folder: Path) -> None:
    experiment = made(data=raybrew.Data(train=containers()[name], eval="owner/rows"), store={"storage_path": name})
    listed = made(data={"train": ROWS, "eval": "owner/rows"})
    one, other = Path(experiment.data.train), Path(listed.data.train)
    assert one.parent == Path(name, ".cache")
    assert one.name == other.name == table_name(experiment.data.train)
    assert one.read_bytes() == other.read_bytes()
    assert experiment.run_id("distill") == listed.run_id("distill")
    assert experiment.run_id("finetune") == listed.run_id("finetune")
    assert load_rows(experiment.data, "train", task_of(experiment)).table.column("text").to_pylist() == [
        row["text"] for row in ROWS
    ]


def test_nested_values_do_not_depend_on_the_container() -> None:
    rows = [
        {"tokens": ["a", "b"], "more": {"n": [1], "m": None}, "score": 1.5, "count": 1, "flag": True, "none": None},
        {"tokens": [], "more": {"n": [], "m": "x"}, "score": None, "count": 2, "flag": None, "none": None},
    ]
    turned = [{**row, "more": dict(reversed(list(row["more"].items())))} for row in rows]  # type: ignore[attr-defined]
    small = pa.Table.from_pylist(rows).cast(
        pa.schema(
            [
                ("tokens", pa.large_list(pa.string())),
                ("more", pa.struct([("n", pa.list_(pa.int8())), ("m", pa.string())])),
                ("score", pa.float32()),
                ("count", pa.uint16()),
                ("flag", pa.bool_()),
                ("none", pa.string()),
            ]
        )
    )
    names = {
        Path(made(data={"train": each}).data.train).name
        for each in (rows, turned, small, datasets.Dataset.from_list(rows), pa.Table.from_pylist(rows))
    }
    assert len(names) == 1
    assert Path(made(data={"train": [*rows, rows[0]]}).data.train).name not in names
    assert Path(made(data={"train": rows[::-1]}).data.train).name not in names


def test_names_of_classes_belong_to_the_rows() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    experiment = made(data={"train": dataset})
    assert load_rows(experiment.data, "train", task_of(experiment)).labels.names == ("neg", "pos")
    plain = made(data={"train": dataset.to_pandas()})
    assert table_name(plain.data.train) != table_name(experiment.data.train)


def test_large_datasets_are_written_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"row {number}", "label": number % 2} for number in range(20_000)]
    table = pa.Table.from_pylist(rows)
    names = {made(data={"train": each}).data.train for each in (rows, table, datasets.Dataset.from_list(rows))}
    assert len(names) == 1
    with pa.memory_map(names.pop()) as file:
        batches = pa.ipc.open_stream(file).read_all().to_batches()
    assert [len(batch) for batch in batches] == [8192, 8192, 3616]


def test_rows_of_several_tasks(folder: Path) -> None:
    parts = {
        "a": {"teacher": "owner/a", "data": {"train": ROWS}},
        "b": {"teacher": "owner/b", "data": raybrew.Data(train=pd.DataFrame(ROWS), cache="other")},
    }
    experiment = raybrew.Experiment(
        name="x", task=raybrew.MultiTask(tasks=parts), distill="kd", student="T3", data={"cache": "mine"}
    )
    places = [Path(part.data.train).parent.name for part in experiment.task.tasks.values()]  # type: ignore[union-attr]
    assert places == ["mine", "other"]
    assert load_experiment(experiment.to_yaml("x.yaml")) == experiment


def test_bad_rows_are_those_of_files() -> None:
    rows = [*ROWS[:2], {"text": None, "label": "good"}, {"text": "x", "label": None}]
    experiment = made(data={"train": rows})
    with pytest.raises(DataError) as caught:
        load_rows(experiment.data, "train", task_of(experiment))
    assert str(caught.value).startswith("2 of the 4 rows of data.train cannot be used; ")
    assert str(caught.value).splitlines()[1:] == [
        "  data.train, row 3, column 'text': empty",
        "  data.train, row 4, column 'label': no label",
    ]
    skipping = made(data={"train": rows, "on_bad_row": "skip", "format": "csv"})
    assert len(load_rows(skipping.data, "train", task_of(skipping))) == 2
    with pytest.raises(DataError, match=r"^data\.train: no column 'text'; it has 'label', 'sentence'"):
        load_rows(made(data={"train": [{"sentence": "a", "label": 1}]}).data, "train", task_of(experiment))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "data.train: no rows"),
        ([{"text": "a"}, {"text": None}, {"text": 5}],
         "data.train, row 3, column 'text': given 5, where rows before hold such as 'a'"),
        (pd.DataFrame({"text": ["a", 5]}), "data.train, row 2, column 'text': given 5"),
        ([{"text": object()}], "data.train, row 1, column 'text': given <object"),
        (pa.table({"text": pa.array([2**63], pa.uint64())}), "data.train: column 'text': "),
    ],
)  # fmt: skip
def test_rows_that_make_no_table(rows: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        made(data={"train": rows})
    assert str(caught.value).startswith(message)
    assert not list(Path().rglob("*.arrow"))


@pytest.mark.parametrize("rows", [5, ["a", "b"], {"text": ["a"]}, object(), datasets.DatasetDict()])
def test_what_are_no_rows(rows: Any) -> None:
    assert problems(data={"train": rows})[0].startswith("data.train: given")


def test_rows_are_not_written_for_what_is_refused(folder: Path) -> None:
    assert problems(data={"train": ROWS}, train={"epochs": 0})
    assert not list(folder.iterdir())


def test_rows_that_cannot_be_written_or_found(folder: Path) -> None:
    (folder / "file").write_text("", encoding="utf-8")
    with pytest.raises(
        EnvironmentProblem, match=r"cannot write the rows of data\.train to .*data\.cache names another"
    ):
        made(data={"train": ROWS, "cache": "file/cache"})
    experiment = made(data={"train": ROWS})
    assert (folder / "runs" / ".rayignore").is_file(), "runs do not travel with jobs"
    Path(experiment.data.train).unlink()
    with pytest.raises(DataError, match=r"rows that were given in Python lie no longer in .*; give them again"):
        load_rows(experiment.data, "train", task_of(experiment))
    assert load_rows(made(data={"train": ROWS}).data, "train", task_of(experiment)).num_read == 20


def test_a_run_of_rows_in_memory_is_continued_whatever_holds_them(folder: Path) -> None:
    make_teacher(folder / "teacher")
    table = make_rows(24).select(["text", "label"])
    values: dict[str, Any] = {
        "name": "tiny", "teacher": "teacher", "student": raybrew.Shape(layers=1),
        "distill": raybrew.Distill("kd", temperature=2), "train": raybrew.Train(epochs=1, device="cpu"),
        "store": {"launcher": "local"},
    }  # fmt: skip
    experiment = raybrew.Experiment(**values, data=raybrew.Data(train=table, eval=table, test="25%"))
    run = raybrew.distill(experiment, report=False)
    assert not run.already_done
    assert load_experiment(run.path / "config.yaml") == experiment
    rows = table.to_pylist()
    again = raybrew.distill(
        raybrew.Experiment(**values, data={"train": rows, "eval": pd.DataFrame(rows), "test": "25%"}), report=False
    )
    assert again.already_done
    assert again.path == run.path
