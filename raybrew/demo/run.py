"""`raybrew demo`: the main job from rows to a report, on generated reviews, offline."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from raybrew.config import Experiment
from raybrew.config.loading import load_experiment
from raybrew.data.sampler import num_batches
from raybrew.demo.recipe import EXPERIMENT, NUM_EVAL, NUM_LABELLED, NUM_UNLABELLED, TEACHER
from raybrew.demo.reviews import build_splits, write_splits
from raybrew.errors import writing
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.records.runs import RunRecord, load_run
from raybrew.reports.compare import compare
from raybrew.reports.tables import json_rows
from raybrew.runs.result import RunResult
from raybrew.verbs.capture import capture
from raybrew.verbs.distill import distill
from raybrew.verbs.finetune import finetune
from raybrew.verbs.report import report

__all__ = ["DemoResult", "run_demo", "write_demo"]


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Where the demo left its experiment, runs and report."""

    experiment: Path
    runs: list[RunRecord]
    report: Path

    def rows(self) -> list[dict[str, Any]]:
        """The comparison's rows as plain values."""
        return json_rows(compare(self.runs))


def run_demo(folder: Path, seeds: int = 3, reporter: Reporter | None = None) -> DemoResult:
    """Write data, an untrained teacher and experiment files into `folder`, then run what a user would run.

    For each of `seeds` seeds a student is distilled from the store, and its control trained on labels alone from the
    same start for as many steps. Finished parts are not repeated.
    """
    reporter = reporter or QuietReporter()
    with writing(folder):
        path, control = write_demo(folder, reporter)
    experiment = load_experiment(path)
    results = [_step(reporter, f"raybrew finetune {path}", finetune, experiment)]
    reporter.say(f"$ raybrew capture {path}")
    capture(experiment, reporter=reporter)
    for file in (path, control):
        for seed in range(seeds):
            override = f"train.seed={seed}"
            settings = load_experiment(file, [override])
            results.append(_step(reporter, f"raybrew distill {file} {override}", distill, settings, report=False))
    runs = [load_run(result.path) for result in results]
    page = report([result.path for result in results], folder / "report.html", "raybrew demo")
    return DemoResult(path, runs, page)


def _step(reporter: Reporter, command: str, verb: Any, experiment: Experiment, **options: Any) -> RunResult:
    reporter.say(f"$ {command}")
    result: RunResult = verb(experiment, reporter=reporter, **options)
    if result.already_done:
        reporter.say("  already done")
    return result


def write_demo(
    folder: Path,
    reporter: Reporter | None = None,
    *,
    labelled: int = NUM_LABELLED,
    unlabelled: int = NUM_UNLABELLED,
    evaluation: int = NUM_EVAL,
) -> tuple[Path, Path]:
    """Data, the untrained teacher, and the two experiment files (student, control); what is there stays.

    `labelled`, `unlabelled` and `evaluation` are numbers of reviews.
    """
    reporter = reporter or QuietReporter()
    path, control = folder / "experiment.yaml", folder / "control.yaml"
    if control.is_file():  # written last
        return path, control
    reporter.say(f"writing {labelled} labelled, {unlabelled} unlabelled and {evaluation} test reviews to {folder}")
    splits = build_splits(0, labelled, unlabelled, evaluation)
    data = write_splits(folder / "data", splits)
    _make_untrained_teacher(folder / "small-bert", [review.text for review in (*splits.labelled, *splits.unlabelled)])
    values = EXPERIMENT | {
        "data": {name: str(file) for name, file in data.items()},
        "teacher": EXPERIMENT["teacher"] | {"model": str(folder / "small-bert")},
        "store": EXPERIMENT["store"] | {"storage_path": str(folder / "runs")},
    }
    head = "# The demo's student: learns from the teacher's logits on labelled and unlabelled reviews.\n"
    path.write_text(head + yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    # As many steps as the student takes on all rows, and as many evaluations.
    train = EXPERIMENT["train"]
    every = num_batches(labelled + unlabelled, train["batch_size"])
    steps = train["epochs"] * every
    epochs = -(-steps // num_batches(labelled, train["batch_size"]))
    differing = {
        "extends": "experiment.yaml",
        "data": {"unlabeled": None},
        "distill": {"kd_weight": 0, "hard_label_weight": 1, "matches": []},
        "train": {"epochs": epochs, "max_steps": steps, "eval_steps": every},
    }
    head = "# Its control: the same student from the same start, labels only, as many steps and evaluations.\n"
    control.write_text(head + yaml.safe_dump(differing, sort_keys=False), encoding="utf-8")
    return path, control


def _make_untrained_teacher(folder: Path, texts: list[str]) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.utils import logging as transformers_logging

    from raybrew.demo.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(texts, folder, max_length=64)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **TEACHER)).save_pretrained(folder)
