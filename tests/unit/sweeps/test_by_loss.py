"""Sweeps of students whose head nothing trains: ranked by one evaluation loss, lowest first, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from family_models import without_latency

from raybrew.config.judge import LOSS, quality, value_of_quality
from raybrew.config.loading import build_experiment
from raybrew.config.sweep_judge import judge_notes, sweep_judge
from raybrew.errors import ConfigError
from raybrew.pipeline.reporter import QuietReporter
from raybrew.records.sweeps import load_sweep
from raybrew.reports.sweep_tables import best_run, leaderboard, round_rows, rule_of
from raybrew.sweeps.jobs import Job
from raybrew.sweeps.prepare import prepare_teachers
from raybrew.sweeps.progress import news
from raybrew.sweeps.replay import objectives_from, older_results
from raybrew.sweeps.trial import _evaluations
from raybrew.tracking.jsonl import MetricsLog
from tests.told import told
from unit import sweep_helpers
from unit.models.test_families import experiment_of
from unit.reports_helpers import make_run

LAYERS: dict[str, Any] = {"kd_weight": 0.0, "matches": [{"loss": "hidden_mse"}]}
RATES = {"train.learning_rate": [1e-5, 1e-4, 1e-3]}


def problems(tmp_path: Path, sweep: dict[str, Any], **sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        sweep_helpers.base(tmp_path, sweep, **sections)
    return told(caught.value)


class TestWhatCannotBeRanked:
    def test_some_by_a_metric_and_others_by_a_loss(self, tmp_path: Path) -> None:
        space = {"distill.kd_weight": [0.0, 1.0], "train.epochs": [1, 2]}
        (problem,) = problems(tmp_path, {"space": space}, distill={"matches": [{"loss": "hidden_mse"}]})
        assert problem == "sweep.space: conflict"
        space = {"distill": [{"method": "tinybert"}, LAYERS]}
        (problem,) = problems(tmp_path, {"space": space})
        assert problem == "sweep.space: conflict"

    @pytest.mark.parametrize(
        "space",
        [
            {"distill.kd_weight": [0.0, 1.0]},  # labels train the head
            {"distill.method": ["tinybert", "kd", "labels", "minilm"]},  # their last stages do
            {"distill.temperature": [1, 2]},
        ],
    )
    def test_all_by_a_metric(self, space: dict[str, Any], tmp_path: Path) -> None:
        more = {} if "distill.method" in space else {"distill": {"hard_label_weight": 1.0}}
        experiment = sweep_helpers.base(tmp_path, {"space": space}, **more)
        assert sweep_judge(experiment) == "accuracy"
        assert judge_notes(experiment) == []

    def test_a_range_that_begins_with_no_weight(self, tmp_path: Path) -> None:
        """Just 0 is never drawn."""
        space = {"distill.kd_weight": {"uniform": [0, 1]}}
        experiment = sweep_helpers.base(tmp_path, {"space": space}, distill={"matches": [{"loss": "hidden_mse"}]})
        assert sweep_judge(experiment) == "accuracy"

    def test_what_would_change_the_loss_itself(self, tmp_path: Path) -> None:
        pbt = {"scheduler": {"kind": "pbt"}, "trials": 4}
        weights = {"space": {"distill.matches.0.weight": {"uniform": [0.1, 1]}}, **pbt}
        (problem,) = problems(tmp_path, weights, distill=LAYERS, train={"eval_steps": 1})
        assert problem == "sweep.space.distill.matches.0.weight: conflict"
        assert sweep_helpers.base(
            tmp_path, {"space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, **pbt}, distill=LAYERS
        )
        (problem,) = problems(tmp_path, {"space": RATES, "warm_start": "x"}, distill=LAYERS)
        assert problem == "sweep.warm_start: conflict"

    def test_losses_of_other_terms_are_found_before_the_teacher_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_latency(monkeypatch)
        values = experiment_of(tmp_path, "bert", "classification").written()

        def prepared(space: dict[str, Any], **distill: Any) -> list[Any]:
            sweep = {"space": space, "search": "grid"}
            given = {**values, "distill": LAYERS | distill, "sweep": sweep}
            return prepare_teachers(build_experiment(given), 4, QuietReporter())

        monkeypatch.setattr("raybrew.store.compute.forward", lambda *_: pytest.fail("the teacher ran"))
        for space in (
            {"student.shape.layers": [1, 2]},  # other pairs of layers
            {"distill.matches": [[{"loss": "hidden_mse"}], [{"loss": "cos"}]]},
            {"distill.matches.0.weight": [0.5, 1.0]},
        ):
            with pytest.raises(ConfigError, match=r"sweep.space: no configuration trains.*hidden_mse\.0-0 x"):
                prepared(space)
        monkeypatch.undo()
        without_latency(monkeypatch)
        pooled = {"matches": [{"loss": "pooled_cos"}]}
        assert prepared({"student.shape.layers": [1, 2]}, **pooled)
        assert prepared({"distill.matches.0.projection": ["auto", "tanh"]})


class TestRanking:
    """Losses of runs are values; what the ledger ranks by are qualities, the negative losses."""

    def run(self, tmp_path: Path, **sweep: Any) -> Any:
        experiment = sweep_helpers.base(
            tmp_path, {"space": RATES, "search": "grid", **sweep}, distill=LAYERS, train={"eval_steps": 1}
        )
        conductor = sweep_helpers.conductor_of(experiment)
        assert conductor.judge == LOSS
        while (job := conductor.next()) is not None:
            conductor.started(job.run)
            self.end(conductor, job)
        return conductor

    def end(self, conductor: Any, job: Job) -> None:
        loss = {1e-5: 0.9, 1e-4: 0.005, 1e-3: 0.2}[job.values["train.learning_rate"]] + 0.001 * job.seed
        best = {"step": 20, "epoch": 1.0, "metric": LOSS, "value": loss}
        best |= {"metrics": {"accuracy": loss}, "losses": {"loss": loss, "loss/hidden_mse.0-0": loss}}
        plain = job.experiment.plain()
        make_run(
            conductor.ledger.folder.parent.parent,
            run_id=job.run,
            seed=job.seed,
            changes={name: plain[name] for name in ("student", "distill", "train")},
            summary={"best": best},
        )
        sweep_helpers.leave_student(conductor.ledger.folder.parent / job.run)
        conductor.reported(job.run, 0.5, quality(LOSS, 2 * loss))
        conductor.reported(job.run, 1.0, quality(LOSS, loss))
        conductor.ended(job.run, {"status": "done", "value": quality(LOSS, loss), "seconds": 1.0})

    def test_the_lowest_loss_is_best_everywhere(self, tmp_path: Path) -> None:
        conductor = self.run(tmp_path, seeds=2, rerun_best={"count": 1, "seeds": 3})
        assert {trial.role for trial in conductor.trials.values()} == {"candidate"}, "a control has no such loss"
        assert [next(iter(each.values.values())) for each in conductor.ranking()] == [1e-4, 1e-3, 1e-5]
        again = [trial for trial in conductor.trials.values() if trial.rerun]
        assert {trial.values["train.learning_rate"] for trial in again} == {1e-4}
        objectives = objectives_from(conductor.ledger.folder.parent, ("quality",))
        best = conductor.trials_with({"train.learning_rate": 1e-4})[0]
        found = objectives(best.run)
        assert found is not None
        assert found[0] == pytest.approx(-0.005)
        lines = news(conductor, {})
        assert any("evaluation loss 0.005" in line for line in lines), lines
        assert not any("-0." in line for line in lines)

    def test_reports_show_losses(self, tmp_path: Path) -> None:
        conductor = self.run(tmp_path, seeds=2)
        ledger = conductor.ledger
        head, *rest = (ledger.folder / "ledger.jsonl").read_text().splitlines()
        told = json.dumps(json.loads(head) | {"judge": LOSS})
        (ledger.folder / "ledger.jsonl").write_text("\n".join([told, *rest]) + "\n")
        record = load_sweep(ledger.folder)
        assert record.metric == LOSS
        assert all(trial.value is not None and trial.value > 0 for trial in record.trials)
        assert all(value > 0 for trial in record.trials for _, value in trial.reports)
        table = leaderboard(record)
        assert table.best is not None
        assert table.best.quality is not None
        assert table.best.quality.mean == pytest.approx(0.0055)
        assert [row.quality.mean for row in table.rows if row.quality and row.role == "student"] == pytest.approx(
            [0.0055, 0.2005, 0.9005]
        )
        chosen = next(trial for trial in record.trials if trial.run == best_run(record))
        assert (chosen.values["train.learning_rate"], chosen.seed) == (1e-4, 0)
        assert "lowest evaluation loss" in rule_of(record.metric, False)

    def test_rounds_of_a_population_show_losses(self, tmp_path: Path) -> None:
        sweep = {"scheduler": {"kind": "pbt"}, "trials": 2, "space": {"train.learning_rate": [1e-4, 1e-3]}}
        experiment = sweep_helpers.base(tmp_path, sweep, distill=LAYERS, train={"eval_steps": 1})
        conductor = sweep_helpers.conductor_of(experiment)
        losses = {}
        while (job := conductor.next()) is not None and not conductor.population.rounds:
            losses[job.run] = job.values["train.learning_rate"]
            conductor.started(job.run)
            conductor.paused(job.run, {"step": 5, "share": 0.25, "value": quality(LOSS, losses[job.run])})
        assert conductor.population is not None
        (line,) = conductor.population.rounds
        loser = max(losses, key=lambda run: losses[run])
        assert min(line.scores, key=line.scores.get) == loser
        folder = conductor.ledger.folder / "ledger.jsonl"
        head, *rest = folder.read_text().splitlines()
        folder.write_text("\n".join([json.dumps(json.loads(head) | {"judge": LOSS}), *rest]) + "\n")
        assert {row["value"] for row in round_rows(load_sweep(conductor.ledger.folder))} == {1e-4, 1e-3}

    def test_an_older_sweep_by_a_loss_is_no_start(self, tmp_path: Path) -> None:
        conductor = self.run(tmp_path)
        folder = conductor.ledger.folder / "ledger.jsonl"
        head, *rest = folder.read_text().splitlines()
        folder.write_text("\n".join([json.dumps(json.loads(head) | {"judge": LOSS}), *rest]) + "\n")
        warm = {"space": RATES, "warm_start": str(conductor.ledger.folder)}
        with pytest.raises(ConfigError, match=r"sweep\.warm_start: .* judged by its evaluation loss"):
            older_results(sweep_helpers.base(tmp_path, warm))


def test_evaluations_of_workers_are_qualities(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step, loss in ((1, 0.5), (2, 0.25)):
            log.write({"step": step, "kind": "eval", "eval/loss": loss, "eval/accuracy": 0.5 + loss, "judge": "loss"})
    assert _evaluations(tmp_path, LOSS, None) == [(1, -0.5), (2, -0.25)]
    assert _evaluations(tmp_path, "accuracy", None) == [(1, 1.0), (2, 0.75)]


def test_a_quality_is_higher_for_what_is_better() -> None:
    assert quality(LOSS, 0.1) > quality(LOSS, 0.2) > quality(LOSS, float("nan"))
    assert quality("f1", 0.2) > quality("f1", 0.1) > quality("f1", float("nan"))
    for judge in (LOSS, "f1"):
        assert value_of_quality(judge, quality(judge, 0.3)) == 0.3
