"""Intervals: coverage by simulation, against scipy and by hand, and what is said where no row scores are known."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raybrew.records.details import RunDetails
from raybrew.records.runs import load_run, load_runs
from raybrew.records.summary import RunSummary
from raybrew.reports.compare import compare
from raybrew.reports.numbers import show_range
from raybrew.reports.statistics.intervals import Sample, difference, interval, linear, mcnemar, row_weights, sidak
from raybrew.reports.statistics.optimism import expected_maximum, of_checkpoints, of_configurations
from unit.reports_helpers import judged_run, make_run

Array = np.ndarray[Any, Any]


def sample(right: Array) -> Sample:
    """The accuracy of `right` (seeds, rows), resampled as reports do."""
    weights = row_weights(right.shape[1]).astype(np.float64)
    return Sample(
        tuple(right.mean(axis=1)),
        right.shape[1],
        key="rows",
        drawn=(right @ weights.T) / weights.sum(axis=1),
        correct=right[0].astype(bool) if len(right) == 1 else None,
        share=True,
    )


class Models:
    """Models whose right answers share what is hard about a row; a seed is a little better or worse on all rows."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def rows(self, count: int) -> Array:
        return self.rng.normal(size=count)

    def right(self, rows: Array, quality: float, seeds: int, spread: float = 0.0) -> Array:
        """(seeds, rows): `quality` is the mean share of right answers over all rows there are."""
        shared = 0.85
        levels = np.clip(quality + spread * self.rng.normal(size=seeds), 0.01, 0.99)
        noise = self.rng.normal(size=(seeds, len(rows)))
        return (math.sqrt(shared) * rows + math.sqrt(1 - shared) * noise < stats.norm.ppf(levels)[:, None]).astype(
            float
        )


@pytest.mark.parametrize(
    ("rows", "seeds", "spread"),
    [
        (300, 1, 0.0),
        (300, 3, 0.0),
        (300, 3, 0.02),
        (300, 5, 0.02),
        (1000, 3, 0.005),
    ],
)
def test_a_95_percent_interval_of_a_gain_covers_the_true_gain(rows: int, seeds: int, spread: float) -> None:
    models, trials, covered = Models(rows + seeds), 500, 0
    for _ in range(trials):
        hard = models.rows(rows)
        student = sample(models.right(hard, 0.88, seeds, spread))
        control = sample(models.right(hard, 0.86, seeds, spread))
        found = difference(student, control)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.02 <= found.high
    assert 0.92 <= covered / trials <= 0.98


def test_a_95_percent_interval_of_one_value_covers_it() -> None:
    models, trials, covered = Models(5), 500, 0
    for _ in range(trials):
        found = interval(sample(models.right(models.rows(400), 0.9, 3, 0.01)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.9 <= found.high
    assert 0.92 <= covered / trials <= 0.98


def test_pairing_makes_intervals_narrower_than_rows_counted_twice() -> None:
    models = Models(1)
    hard = models.rows(872)
    one, other = (sample(models.right(hard, quality, 1)) for quality in (0.9, 0.88))
    paired = difference(one, other)
    apart = difference(dataclasses.replace(one, key=None, drawn=None), other)
    assert paired.half is not None
    assert apart.half is not None
    assert paired.half < 0.75 * apart.half
    assert paired.basis == apart.basis == "rows"
    # By hand: the standard error of the mean of differences row by row.
    assert one.correct is not None
    assert other.correct is not None
    gaps = one.correct.astype(float) - other.correct.astype(float)
    assert paired.half == pytest.approx(1.963 * gaps.std() / math.sqrt(872), rel=0.05)


def test_mcnemar_counts_rows_that_only_one_model_answers() -> None:
    one = np.array([True] * 9 + [False] * 2 + [True] * 50)
    other = np.array([False] * 9 + [True] * 2 + [True] * 50)
    assert mcnemar(one, other) == pytest.approx(stats.binomtest(9, 11, 0.5).pvalue)
    assert mcnemar(one, one) == 1.0
    pair = [sample(right[None].astype(float)) for right in (one, other)]
    assert difference(*pair).p == pytest.approx(mcnemar(one, other)), "of single runs"
    assert difference(*pair, tries=3).p == pytest.approx(1 - (1 - mcnemar(one, other)) ** 3)


def test_intervals_of_many_configurations_hold_together() -> None:
    assert sidak(1) == 0.95
    assert sidak(16) ** 16 == pytest.approx(0.95)
    models = Models(2)
    hard = models.rows(500)
    one, other = (sample(models.right(hard, 0.9, 1)) for _ in range(2))
    alone, among = difference(one, other), difference(one, other, tries=16)
    assert alone.half is not None
    assert among.half is not None
    assert among.half / alone.half == pytest.approx(stats.t.ppf((1 + sidak(16)) / 2, 499) / stats.t.ppf(0.975, 499))


def test_seeds_add_their_spread_and_few_seeds_widen_the_quantile() -> None:
    plain = Sample((0.90, 0.92, 0.94), None)
    control = Sample((0.88, 0.89, 0.90), None)
    found = difference(plain, control)
    error = math.sqrt((0.02**2 + 0.01**2) / 3)
    freedom = (0.02**2 + 0.01**2) ** 2 / (0.02**4 / 2 + 0.01**4 / 2)
    assert found.half == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    assert found.basis == "seeds"
    assert not found.shown, "seeds alone say nothing about other rows"
    teacher = Sample((0.95,), None, fixed=True)
    assert difference(plain, teacher).half == pytest.approx(stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3))
    single = Sample((0.88,), None)
    assert difference(plain, single).half == pytest.approx(stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3)), (
        "a single run stands for itself"
    )


def test_a_difference_of_shares_stays_possible() -> None:
    """Nine rows of a label, all wrong against four of five right: −0.8 has no lower end of −1.13."""
    drawn = np.random.default_rng(0).normal(0.8, 0.15, (1, 2000))
    found = difference(
        Sample((0.0,) * 3, 9, "k", np.zeros((3, 2000))), Sample((0.8,), 9, "k", drawn.clip(0, 1), fixed=True)
    )
    assert found.low == -1.0
    assert found.high is not None
    assert -0.8 < found.high < 0
    loss = difference(Sample((0.1,) * 3, 9, bounded=False), Sample((3.1, 3.2, 2.0), 9, bounded=False))
    assert loss.low is not None
    assert loss.low < -1, "losses have no such limits"


def test_nothing_is_invented_where_nothing_is_known() -> None:
    found = difference(Sample((0.9,), 872), Sample((0.8,), 872))
    assert (found.low, found.high, found.basis, found.shown) == (None, None, "unknown", False)
    assert interval(Sample((0.9,), 872)).low is None, "F1 of a single run without row scores"


def test_a_share_without_row_scores_takes_the_normal_approximation() -> None:
    found = interval(Sample((0.9,), 872, share=True))
    share = (0.9 * 872 + 2) / 876
    assert found.half == pytest.approx(stats.t.ppf(0.975, 871) * math.sqrt(share * (1 - share) / 876))
    certain = interval(Sample((1.0,), 50, share=True))
    assert certain.low is not None
    assert certain.low < 0.96, "all of 50 rows right is not 100 %"
    assert certain.high == 1.0


def test_equal_answers_are_not_a_difference_of_exactly_zero() -> None:
    right = sample(np.ones((1, 100)))
    found = difference(right, right)
    assert found.value == 0
    assert found.half == pytest.approx(stats.t.ppf(0.975, 99) / 100)


def test_a_slope_over_a_key_counts_rows_and_configurations() -> None:
    models = Models(3)
    hard = models.rows(800)
    samples = [sample(models.right(hard, 0.8 + 0.02 * place, 1)) for place in range(5)]
    weights = [-0.2, -0.1, 0.0, 0.1, 0.2]
    found = linear(samples, weights, (1e-4, 3.0))
    assert found.value == pytest.approx(sum(w * s.mean for w, s in zip(weights, samples, strict=True)))
    bare = linear([dataclasses.replace(s, key=None, drawn=None) for s in samples], weights, (1e-4, 3.0))
    assert bare.basis == "configurations"
    assert bare.half is not None
    assert found.half is not None
    assert bare.half == pytest.approx(stats.t.ppf(0.975, 3) * 0.01)


def chosen(samples: list[Sample]) -> int:
    return int(np.argmax([one.mean for one in samples]))


@pytest.mark.parametrize(
    ("count", "seeds", "low", "high"), [(16, 1, 1.0, 1.6), (3, 2, 0.3, 0.65)], ids=["one seed", "after re-runs"]
)
def test_optimism_of_equal_configurations_is_what_chance_gives(count: int, seeds: int, low: float, high: float) -> None:
    """16 equal configurations on 872 rows: about +1.3 points by chance; three of them run again: about +0.5."""
    models, flattered, told, told_without = Models(4), [], [], []
    for _ in range(60):
        hard = models.rows(872)
        samples = [sample(models.right(hard, 0.87, seeds)) for _ in range(count)]
        flattered.append(samples[chosen(samples)].mean - 0.87)
        told.append(of_configurations(samples))
        told_without.append(of_configurations([dataclasses.replace(s, key=None, drawn=None) for s in samples]))
    for values in (flattered, told, told_without):
        assert low <= 100 * float(np.mean(np.array(values, float))) <= high


def test_optimism_vanishes_where_one_configuration_is_far_better() -> None:
    models = Models(6)
    hard = models.rows(872)
    samples = [sample(models.right(hard, quality, 1)) for quality in (0.95, 0.8, 0.78, 0.75)]
    found = of_configurations(samples)
    assert found is not None
    assert abs(found) < 0.001
    assert of_configurations(samples[:1]) == 0.0
    assert expected_maximum(16) == pytest.approx(1.766, abs=0.01)


class Curve(RunDetails):
    """Evaluations of a run, instead of those in its folder."""

    def __init__(self, folder: Path, evals: tuple[dict[str, Any], ...]) -> None:
        super().__init__(folder)
        self.evals = evals

    def lines(self, kind: str) -> tuple[dict[str, Any], ...]:
        return self.evals if kind == "eval" else ()


def test_optimism_of_checkpoints_counts_those_that_compete(tmp_path: Path) -> None:
    truth = [0, 1] * 436
    answers = [0, 1] * 380 + [1, 0] * 56
    folder = judged_run(tmp_path, "student", truth, {"eval": answers}, summary={"chosen": {"checkpoints": 10}})
    run = load_run(folder)
    row = compare([run]).best
    assert row is not None
    (eval_sample,) = [row.samples["eval"]]
    assert eval_sample is not None
    found = of_checkpoints(run, eval_sample)
    assert found is not None
    assert 0 <= found < expected_maximum(10) * math.sqrt(0.4 * 0.87 * 0.13 / 872) + 1e-9
    alone = dataclasses.replace(run, summary=RunSummary.read({"chosen": {"checkpoints": 1}}))
    assert of_checkpoints(alone, eval_sample) == 0.0
    # A flat curve with noise: the best of 8 evaluations is high by about 1.42 standard deviations of one.
    rng, gaps = np.random.default_rng(0), []
    for _ in range(200):
        values = 0.87 + 0.006 * rng.normal(size=8)
        evals = tuple({"eval/accuracy": float(value), "best": True} for value in values)
        summary = RunSummary.read({"best": {"metric": "accuracy", "value": float(values.max())}})
        flat = dataclasses.replace(run, details=Curve(run.folder, evals), summary=summary)
        gaps.append((values.max() - 0.87, of_checkpoints(flat, eval_sample)))
    true, told = np.array(gaps, float).mean(axis=0)
    assert told == pytest.approx(true, rel=0.25)


def answers_of(rng: np.random.Generator, truth: Array, quality: float) -> list[int]:
    return [int(v) for v in np.where(rng.random(len(truth)) < quality, truth, 1 - truth)]


def test_rows_read_their_scores_and_pair_with_control_and_teacher(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=400)
    teacher = answers_of(rng, truth, 0.95)
    for seed in range(3):
        for role, quality in (("student", 0.9), ("control", 0.8)):
            given = {"eval": answers_of(rng, truth, quality), "teacher-eval": teacher}
            judged_run(tmp_path, role, truth.tolist(), given, seed=seed)
    rows = {row.role: row for row in compare(load_runs([tmp_path])).rows}
    gain = rows["student"].gain
    assert gain is not None
    assert gain.interval is not None
    assert gain.interval.basis == "rows and seeds"
    assert (gain.interval.rows, gain.interval.seeds) == (400, 3)
    assert gain.interval.shown
    assert gain.interval.value == pytest.approx(gain.mean)
    over = rows["student"].over_teacher
    assert over is not None
    assert over.value < 0
    assert rows["teacher"].interval is not None
    assert rows["teacher"].interval.basis == "rows"
    columns = rows["student"].to_dict()
    assert columns["gain_low"] < columns["gain"] < columns["gain_high"]
    assert (columns["gain_on"], columns["gain_rows"], columns["gain_seeds"], columns["gain_shown"]) == (
        "eval", 400, 3, True,
    )  # fmt: skip
    assert columns["gain_p"] < 0.05


def test_scores_of_another_model_are_not_used(tmp_path: Path) -> None:
    truth = [0, 1] * 50
    folder = judged_run(tmp_path, "student", truth, {"eval": truth})
    other = make_run(tmp_path / "other", accuracy=0.5)
    (other / "scores").mkdir()
    (other / "scores" / "eval.npz").write_bytes((folder / "scores" / "eval.npz").read_bytes())
    (row,) = [row for row in compare(load_runs([other])).rows if row.role == "student"]
    found = row.samples["eval"]
    assert found is not None
    assert found.key is None, "they give another accuracy than the summary"


def test_what_is_shown_first_is_the_value_that_chose_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=300)
    for seed in range(2):
        for role, on_eval, on_test in (("student", 0.92, 0.85), ("control", 0.85, 0.84)):
            given = {"eval": answers_of(rng, truth, on_eval), "test": answers_of(rng, truth, on_test)}
            judged_run(tmp_path, role, truth.tolist(), given, seed=seed)
    found = compare(load_runs([tmp_path]))
    best = found.best
    assert best is not None
    assert found.split == best.split == "test"
    assert best.leading is best.test
    assert best.gain is not None
    assert best.gain.on == "test"
    columns = best.to_dict()
    assert columns["value"] == pytest.approx(best.test.mean if best.test else None)
    assert (columns["value_on"], columns["value_rows"]) == ("test", 300)
    assert best.quality is not None
    assert columns["eval_value"] == pytest.approx(best.quality.mean)


def test_the_test_rows_do_not_choose(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(2, size=300)
    for temperature, on_eval, on_test in ((2.0, 0.95, 0.6), (8.0, 0.7, 0.99)):
        given = {"eval": answers_of(rng, truth, on_eval), "test": answers_of(rng, truth, on_test)}
        judged_run(tmp_path, "student", truth.tolist(), given, changes={"distill": {"temperature": temperature}})
    best = compare(load_runs([tmp_path])).best
    assert best is not None
    assert best.runs[0].config["distill"]["temperature"] == 2.0


def test_an_end_of_a_difference_that_is_not_zero_does_not_look_like_it() -> None:
    assert show_range("f1", -0.022, -0.0004, rows=2917, signed=True) == "−2.2 to −0.04"
    assert show_range("f1", 0.0, 0.01, rows=2917, signed=True) == "0.0 to +1.0"
    assert show_range("f1", 0.0004, 0.01, rows=2917) == "0.0 to 1.0"
