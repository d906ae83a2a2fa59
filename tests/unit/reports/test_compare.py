"""Grouping, gain over the control, what is kept of the teacher: against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raybrew.config.base import identity_of
from raybrew.config.distill import DistillConfig
from raybrew.records.runs import load_runs
from raybrew.reports.compare import compare
from raybrew.reports.comparison import Comparison
from raybrew.reports.decision import decide
from raybrew.reports.figures.runs import pareto_front
from raybrew.reports.rows import Row, Stat
from raybrew.reports.statistics.intervals import Interval
from raybrew.reports.tables import caption_lines, comparison_table, csv_text, json_rows, table_text
from raybrew.reports.variants import name_variants
from raybrew.reports.words import over_control
from unit.reports_helpers import make_run

SMALL = {"description": "BERT 2x128", "parameters": 4_386_000, "megabytes": 17.6}


def comparison(path: Path) -> Comparison:
    return compare(load_runs([path]))


def only(found: Comparison, role: str) -> Row:
    (row,) = [row for row in found.rows if row.role == role]
    return row


def test_stat() -> None:
    stat = Stat((0.9, 0.92, 0.94))
    assert stat.mean == pytest.approx(0.92)
    assert stat.sd == pytest.approx(0.02)
    assert Stat((0.9,)).sd is None
    assert Stat.of([None, 1.0]) == Stat((1.0,))
    assert Stat.of([None]) is None


def test_seeds_make_one_row_and_gain_is_paired_by_seed(tmp_path: Path) -> None:
    make_run(tmp_path, "teacher", accuracy=0.95, latency=(6.05, 0.95))
    for seed, (student, control) in enumerate([(0.90, 0.88), (0.92, 0.89), (0.94, 0.90)]):
        make_run(tmp_path, seed=seed, accuracy=student, teacher_accuracy=0.95, teacher_latency=(6.05, 0.95))
        make_run(tmp_path, "control", seed=seed, accuracy=control, teacher_accuracy=0.95)
    found = comparison(tmp_path)
    assert [row.role for row in found.rows] == ["teacher", "student", "control"]
    row = only(found, "student")
    assert found.best is row
    assert row.seeds == (0, 1, 2)
    assert row.quality is not None
    assert (row.quality.mean, row.quality.sd) == (pytest.approx(0.92), pytest.approx(0.02))
    assert row.gain is not None
    # Differences 0.02, 0.03, 0.04.
    assert (row.gain.mean, row.gain.sd, row.gain.n) == (pytest.approx(0.03), pytest.approx(0.01), 3)
    assert (row.gain.paired, row.gain.wins, row.gain.differences) == (True, 3, ())
    assert row.kept == pytest.approx(0.92 / 0.95)
    assert only(found, "control").kept == pytest.approx(0.89 / 0.95)
    assert row.smaller == pytest.approx(22_713_986 / 14_351_000)
    assert row.faster == {"batch_1": pytest.approx(5.0), "batch_32": pytest.approx(5.0)}
    assert only(found, "control").gain is None


def test_gain_with_other_seeds_is_a_difference_of_means(tmp_path: Path) -> None:
    for seed, accuracy in [(0, 0.90), (1, 0.94)]:
        make_run(tmp_path, seed=seed, accuracy=accuracy)
    for seed, accuracy in [(5, 0.87), (6, 0.88), (7, 0.89)]:
        make_run(tmp_path, "control", seed=seed, accuracy=accuracy)
    gain = only(comparison(tmp_path), "student").gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.92 - 0.88)
    assert gain.sd == pytest.approx(math.sqrt(0.02**2 * 2 + 0.01**2))
    assert (gain.paired, gain.wins, gain.n) == (False, None, 2)


def test_a_single_seed_has_no_spread(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, "control", accuracy=0.88)
    gain = only(comparison(tmp_path), "student").gain
    assert gain is not None
    assert (gain.mean, gain.sd, gain.n, gain.wins) == (pytest.approx(0.02), None, 1, 1)


def test_a_control_of_another_shape_or_evaluation_does_not_count(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, "control", accuracy=0.8, changes={"student": {"shape": "tiny"}}, student=SMALL)
    make_run(tmp_path, "control", accuracy=0.7, changes={"data": {"eval": "other.tsv"}})
    found = comparison(tmp_path)
    assert only(found, "student").gain is None
    assert any("evaluation rows" in note for note in found.notes)


def test_the_control_that_agrees_best_is_taken_and_differences_are_named(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9, changes={"data": {"unlabeled": "more.tsv"}})
    make_run(tmp_path, "control", accuracy=0.89, changes={"train": {"batch_size": 7, "warmup": 0.0}})
    make_run(tmp_path, "control", accuracy=0.87, changes={"train": {"epochs": 2, "warmup": 0.0}})
    gain = only(comparison(tmp_path), "student").gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.03)
    assert gain.differences == ("train.warmup",), (
        "unlabelled rows are no use to a control, which takes its steps by epochs"
    )
    # How well a control is optimised is searched as for students: among those the best one is taken.
    make_run(tmp_path, "control", accuracy=0.86)
    gain = only(comparison(tmp_path), "student").gain
    assert gain is not None
    assert (gain.mean, gain.differences) == (pytest.approx(0.03), ("train.warmup",))
    make_run(tmp_path, "control", accuracy=0.88, changes={"train": {"learning_rate": 3e-4}})
    gain = only(comparison(tmp_path), "student").gain
    assert gain is not None
    assert (gain.mean, gain.differences) == (pytest.approx(0.02), ("train.learning_rate",))


def test_unfinished_runs_stay_out_of_means_controls_and_the_best(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, accuracy=0.9)
    make_run(tmp_path, seed=1, accuracy=0.99, done=False)
    make_run(tmp_path, "control", accuracy=0.1, done=False)
    found = comparison(tmp_path)
    assert found.best is not None
    assert found.best.quality == Stat((0.9,))
    assert found.best.gain is None
    unfinished = [row for row in found.rows if not row.done]
    assert len(unfinished) == 2
    assert all(row.kept is None and row.parameters is None and row.latency_ms == {} for row in unfinished)
    assert {row.label for row in found.rows if row.runs} == {"BERT 4x312"}, "named like the finished one of its shape"
    assert any("not part of this decision" in caution for caution in decide(found).cautions)


def test_repeats_of_one_seed_are_not_more_seeds(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9, run_id="a")
    make_run(tmp_path, accuracy=0.9, run_id="b")
    found = comparison(tmp_path)
    row = only(found, "student")
    assert row.quality == Stat((0.9,))
    assert any("1 run(s)" in note for note in found.notes)


def test_a_teacher_that_no_run_made_is_a_row_by_its_facts(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9, teacher_accuracy=0.96)
    row = only(found := comparison(tmp_path), "teacher")
    assert (row.label, row.runs, row.parameters, row.latency_ms) == ("all-MiniLM-L6-v2", (), 22_713_986, {})
    assert row.quality == Stat((0.96,))
    assert only(found, "student").kept == pytest.approx(0.9 / 0.96)
    assert only(found, "student").faster == {}, "its time is not known"


def test_a_teacher_that_no_run_made_has_every_metric_on_test_rows_and_says_which_rows_are_easier(
    tmp_path: Path,
) -> None:
    tested = {"metrics": {"accuracy": 0.84, "macro_f1": 0.81}, "rows": 4000}
    size = {"model": "all-MiniLM-L6-v2", "parameters": 22_713_986, "megabytes": 90.9}
    summary = {
        "teacher": {**size, "metrics": {"accuracy": 0.96}, "test": tested},
        "test": {"metric": "accuracy", "value": 0.8, "metrics": {"accuracy": 0.8, "macro_f1": 0.78}, "rows": 4000},
        "epochs": 0.8,
    }
    make_run(tmp_path, accuracy=0.9, summary=summary)
    found = comparison(tmp_path)
    assert only(found, "teacher").test_metrics == {"accuracy": Stat((0.84,)), "macro_f1": Stat((0.81,))}
    how_sure, cost = (answer.text for answer in decide(found).answers[1:3])
    assert "(the teacher: 96.0 there, 84.0 on data.test)" in how_sure
    assert "(1,000 steps, 0.8 epochs)" in cost


def test_nothing_is_kept_of_a_teacher_without_evaluation(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9, teacher_accuracy=None)
    found = comparison(tmp_path)
    assert only(found, "student").kept is None
    assert only(found, "teacher").quality is None


def test_a_students_label_falls_back_to_its_sizes(tmp_path: Path) -> None:
    student = {"description": None, "architecture": "BertForSequenceClassification", "layers": 3, "hidden": 384}
    make_run(tmp_path, student=student)
    assert only(comparison(tmp_path), "student").label == "Bert 3x384"


def test_rows_of_one_model_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, accuracy=0.89, changes={"distill": {"temperature": 2.0, "matches": []}})
    names = [row.name for row in comparison(tmp_path).rows if row.role == "student"]
    assert names == [
        "BERT 4x312 (temperature=8, matches=hidden_mse)",
        "BERT 4x312 (temperature=2, matches=none)",
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([{"a": {"x": 1}}, {"a": {"x": 2}}], ["x=1", "x=2"]),
        ([{"a": {"x": 1}, "b": {"x": 1}}, {"a": {"x": 2}, "b": {"x": 3}}], ["a.x=1, b.x=1", "a.x=2, b.x=3"]),
        ([{"loss": {"kind": "ce"}}, {"loss": {"kind": "kl"}}], ["loss.kind=ce", "loss.kind=kl"]),
        ([{"m": [{"loss": "cos", "weight": 1.0}]}, {"m": [{"loss": "cos", "weight": 2.0}]}],
         ["m[0].weight=1", "m[0].weight=2"]),
        ([{"m": [{"loss": "cos"}, {"loss": "pkd"}]}, {"m": []}], ["m=cos+pkd", "m=none"]),
        ([{"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 2, "b": 2, "c": 2, "d": 2}],
         ["a=1, b=1, c=1, +1 more", "a=2, b=2, c=2, +1 more"]),
        ([{"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 1, "b": 1, "c": 1, "d": 2}, {"a": 2, "b": 2, "c": 2, "d": 2}],
         ["a=1, b=1, c=1, d=1", "a=1, b=1, c=1, d=2", "a=2, b=2, c=2, +1 more"]),
        ([{"a": 1}, {"a": 1}], ["", ""]),
    ],
)  # fmt: skip
def test_name_variants(settings: list[dict[str, Any]], expected: list[str]) -> None:
    assert name_variants(settings) == expected


def test_pareto_front() -> None:
    points = [(10.0, 0.9), (5.0, 0.85), (5.0, 0.8), (20.0, 0.9), (1.0, 0.5), (30.0, 0.95), (10.0, 0.9)]
    assert pareto_front(points) == [4, 1, 0, 6, 5]
    assert pareto_front([]) == []


def full(tmp_path: Path) -> Comparison:
    make_run(tmp_path, "teacher", accuracy=0.95, latency=(6.05, 0.95))
    for seed in range(3):
        accuracy = 0.9 + 0.01 * seed
        make_run(tmp_path, seed=seed, accuracy=accuracy, teacher_accuracy=0.95, teacher_latency=(6.05, 0.95))
        make_run(tmp_path, "control", seed=seed, accuracy=0.88, teacher_accuracy=0.95, changes={"train": {"epochs": 3}})
    make_run(tmp_path, seed=9, done=False)
    return comparison(tmp_path)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_fit_and_keep_what_matters(tmp_path: Path, width: int) -> None:
    text = table_text(full(tmp_path), width)
    table = text.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= width
    assert "\x1b" not in text
    for part in ("all-MiniLM-L6-v2", "BERT 4x312", "91.0 ± 2.3", "+3.0 ± 3.1 *", "95.8 %", "so far", "unfinished"):
        assert part in text, part
    assert ("steps" in text) == (width == 120)
    assert "* BERT 4x312" in text
    assert "train.epochs" in text
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=True).print(comparison_table(full(tmp_path / "again"), width))
    assert "91.0 ± 2.3" in stream.getvalue()
    assert "…" not in stream.getvalue()


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    make_run(tmp_path, student={"description": "[red]x[/red] [link]"})
    assert "[red]x[/red]" in table_text(comparison(tmp_path), 100)


def test_rows_as_json_and_csv(tmp_path: Path) -> None:
    found = full(tmp_path)
    rows = json_rows(found)
    json.dumps(rows, allow_nan=False)
    student = next(row for row in rows if row["role"] == "student" and row["status"] == "done")
    assert student["value"] == pytest.approx(0.91)
    assert student["value_sd"] == pytest.approx(0.01)
    assert student["gain"] == pytest.approx(0.03)
    assert student["seeds"] == [0, 1, 2]
    assert student["metrics"]["macro_f1"]["n"] == 3
    assert student["ms_batch_1"] == pytest.approx(1.21)
    unfinished = next(row for row in rows if row["status"] != "done")
    assert (unfinished["parameters"], unfinished["gain"], unfinished["kept"]) == (None, None, None), "no fake zeros"
    lines = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert len(lines) == len(rows)
    assert float(lines[1]["accuracy"]) == pytest.approx(0.91)
    assert lines[1]["seeds"] == "0 1 2"
    assert lines[-1]["parameters"] == ""


def test_captions_say_only_what_is_there(tmp_path: Path) -> None:
    make_run(tmp_path, teacher_accuracy=None)
    lines = caption_lines(comparison(tmp_path))
    assert [line.split(":")[0] for line in lines] == ["accuracy", "±"]
    assert "chosen on these rows" in lines[0]
    assert "seeds" not in lines[1]


def test_the_decision(tmp_path: Path) -> None:
    decision = decide(full(tmp_path))
    assert decision.headline == (
        "Best student: BERT 4x312 reaches 91.0 ± 2.3 accuracy on 872 rows of data.eval; +3.0 (−0.1 to +6.1) over the "
        "same student trained on labels only: no difference could be shown (872 rows, 3 seeds)."
    )
    assert [answer.question for answer in decision.answers] == ["Which", "How sure", "At what cost", "Compared with"]
    assert decision.detail == "It is 1.6x smaller, 5.0x faster one row at a time and 5.0x in batches of 32."
    tiles = {tile.label: tile for tile in decision.tiles}
    assert tiles["vs labels only"].value == "+3.0 ± 3.1"
    assert tiles["vs labels only"].note.endswith("in 3 of 3 seeds")
    assert tiles["% of teacher"].value == "95.8 %"
    assert not any(tile.missing for tile in decision.tiles)
    assert any("train.epochs" in caution for caution in decision.cautions)
    assert any("Chosen on these rows" in caution and "872 rows" in caution for caution in decision.cautions)


def test_a_decision_says_what_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path, teacher_accuracy=None, latency=None)
    decision = decide(comparison(tmp_path))
    assert decision.headline.startswith(
        "Best student: BERT 4x312 reaches 90.0 ± 2.0 accuracy on 872 rows of data.eval;"
    )
    missing = {tile.label for tile in decision.tiles if tile.missing}
    assert missing == {"% of teacher", "time per example", "vs labels only"}
    assert any("One seed only" in caution for caution in decision.cautions)


def words(path: Path) -> str:
    decision = decide(comparison(path))
    parts = [decision.headline, *decision.cautions, *(answer.text for answer in decision.answers)]
    return " ".join([*parts, *(f"{tile.label} {tile.note}" for tile in decision.tiles)])


@pytest.mark.parametrize("control", [0.9, 0.91, 0.89])
def test_small_differences_are_not_called_one(tmp_path: Path, control: float) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, "control", accuracy=control)
    text = words(tmp_path)
    assert "no difference could be shown (872 rows, 1 seed)" in text
    for word in ("a gain", "better", "worse", "beats", "gain by distillation"):
        assert word not in text, word


@pytest.mark.parametrize(("control", "told"), [(0.8, "a gain"), (0.96, "distillation made it worse")])
def test_differences_that_are_shown_are_named(tmp_path: Path, control: float, told: str) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, "control", accuracy=control)
    assert told in words(tmp_path)


@pytest.mark.parametrize(("low", "small"), [(0.002, True), (0.02, False)])
def test_a_gain_that_may_be_small_is_named_so(tmp_path: Path, low: float, small: bool) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, "control", accuracy=0.8)
    row = only(comparison(tmp_path), "student")
    assert row.gain is not None
    row.gain.__dict__["interval"] = Interval(0.03, low, 0.06, 872, 1, "rows", p=0.01)
    told = over_control(row)
    assert told.endswith("a gain, perhaps a small one" if small else "a gain")


@pytest.mark.parametrize(("student", "beats"), [(0.96, False), (0.99, True)])
def test_a_student_beats_its_teacher_only_if_the_interval_says_so(tmp_path: Path, student: float, beats: bool) -> None:
    make_run(tmp_path, accuracy=student, teacher_accuracy=0.95)
    assert ("beats its teacher" in words(tmp_path)) == beats


def test_a_student_that_others_equal_is_chosen_not_best(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9)
    make_run(tmp_path, accuracy=0.895, changes={"distill": {"temperature": 2.0}})
    decision = decide(comparison(tmp_path))
    assert decision.headline.startswith("Chosen student: ")
    assert "Not shown to be better than temperature=2" in decision.answers[0].text
    assert "it has the highest mean there" in decision.answers[0].text
    make_run(tmp_path / "apart", accuracy=0.9)
    make_run(tmp_path / "apart", accuracy=0.7, changes={"distill": {"temperature": 2.0}})
    assert decide(comparison(tmp_path / "apart")).headline.startswith("Best student: ")


def test_without_test_rows_a_caution_estimates_what_choosing_flatters(tmp_path: Path) -> None:
    for temperature in range(1, 17):
        make_run(tmp_path, accuracy=0.87, changes={"distill": {"temperature": float(temperature)}})
    (caution,) = [text for text in decide(comparison(tmp_path)).cautions if text.startswith("Chosen on these rows")]
    assert "choosing among 16 configurations about 1.3 points" in caution
    assert "data.test" in caution


def test_with_test_rows_they_lead_and_nothing_is_flattered(tmp_path: Path) -> None:
    test = {"metric": "accuracy", "value": 0.87, "metrics": {"accuracy": 0.87}, "rows": 4000, "source": "test.tsv"}
    make_run(tmp_path, accuracy=0.9, summary={"test": test})
    found = comparison(tmp_path)
    decision = decide(found)
    assert "reaches 87.0 ± 1.0 accuracy on 4,000 test rows" in decision.headline
    assert not any("Chosen on these rows" in caution for caution in decision.cautions)
    assert "90.0 ± 2.0 on data.eval" in decision.answers[1].text
    text = table_text(found, 120)
    assert "test accuracy %" in text
    assert "data.eval" in text
    assert "87.0 ± 1.0" in text


def test_methods_are_told_by_their_names(tmp_path: Path) -> None:
    """And by what is not as the method sets it, if others do not share that; not by every loss."""
    for method, own in (("tinybert", {}), ("pkd-skip", {"kd_weight": 0.25}), ("kd", {})):
        section = DistillConfig.model_validate({"method": method, "probability_shift": True, **own})
        make_run(tmp_path, changes={"distill": identity_of(section) | {"method": method}})
    found = {row.variant for row in comparison(tmp_path).rows if row.role == "student"}
    assert found == {"method=tinybert", "method=pkd-skip, kd_weight=0.25", "method=kd"}
