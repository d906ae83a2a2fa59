"""The part that `finetune` and `distill` share: from a spec to a finished run folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybrew.config import Experiment, TrainConfig
from raybrew.data.encoded import EncodedRows
from raybrew.errors import Interrupted
from raybrew.export.card import model_card
from raybrew.export.folder import write_card
from raybrew.models.inspection import count_parameters, describe, measure_latency, model_megabytes
from raybrew.models.loading import ModelSource, load_model, pick_device
from raybrew.tasks.base import Labels
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.encoded import total_steps
from raybrew.training.launch import launch
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.job import run_job
from raybrew.verbs.reporter import Reporter, follow_metrics
from raybrew.verbs.result import RunResult

__all__ = ["Inputs", "command_line", "facts_of_model", "train_run"]

#: Rows whose median length stands for a typical example when latency is measured.
_LATENCY_BATCHES = (1, 32)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All that a run is made from besides its configuration; fingerprints of these are kept with it."""

    labels: Labels
    training: EncodedRows
    evaluation: EncodedRows | None
    num_labelled: int
    num_unlabeled: int
    teacher: ModelSource | None
    store: str | None = None
    fingerprint: str | None = None

    def fingerprints(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        return {
            "training_rows": self.training.key,
            "evaluation_rows": self.evaluation.key if self.evaluation is not None else None,
            "teacher": self.fingerprint,
        }


def train_run(
    experiment: Experiment,
    verb: str,
    run: RunFolder,
    inputs: Inputs,
    config: TrainConfig,
    reporter: Reporter,
    facts: Mapping[str, Any],
    key: str,
) -> RunResult:
    """Train by `config` in `run`, or continue there; write the summary and model card. Interrupted after a stop."""
    run.prepare(experiment, verb, inputs.fingerprints(), command_line())
    spec = {
        "experiment": experiment.plain(),
        "verb": verb,
        "run_folder": str(run.path),
        "run_id": run.run_id,
        "labels": list(inputs.labels.names),
        "training_rows": str(inputs.training.folder),
        "evaluation_rows": str(inputs.evaluation.folder) if inputs.evaluation is not None else None,
        "teacher": dataclasses.asdict(inputs.teacher) if inputs.teacher is not None else None,
        "store": inputs.store,
        "fingerprint": inputs.fingerprint,
    }
    num_steps = total_steps(inputs.training.num_rows, config)
    with follow_metrics(run.metrics, reporter, f"{verb} {experiment.name}", num_steps):
        result = launch(run_job, spec, config, run.path, reporter.say, key)
    if result["status"] == "interrupted":
        raise Interrupted(f"{result['message']} in {run.path}; the same command continues it")
    summary = {
        "verb": verb,
        "name": experiment.name,
        "run_id": run.run_id,
        "status": "done",
        "seed": config.seed,
        "student": facts_of_model(run.student, experiment, inputs, config.device, key),
        "best": result["best"],
        "last": result["last"],
        "steps": result["steps"],
        "epochs": result["epochs"],
        "rows": {
            "train": inputs.num_labelled,
            "unlabeled": inputs.num_unlabeled,
            "eval": inputs.evaluation.num_rows if inputs.evaluation is not None else 0,
        },
        "wall_seconds": round(result["seconds"], 2),
        "workers": result["workers"],
        "precision": result["precision"],
        "device": result["device"],
        **facts,
    }
    summary["latency_ms"] = summary["student"].pop("latency_ms")
    write_card(run.student, model_card(summary | {"command": command_line()}))
    run.finish(summary)
    # The state of a finished run is of no more use, and it is three times the size of the model.
    Checkpoints(run.checkpoints, 1).clear()
    return RunResult(run.path, summary)


def facts_of_model(
    folder: Path, experiment: Experiment, inputs: Inputs, device: str, key: str = "train"
) -> dict[str, Any]:
    """Size and measured latency of the model in `folder`."""
    model = load_model(ModelSource(str(folder)), experiment.task.kind)
    rows = inputs.evaluation if inputs.evaluation is not None else inputs.training
    length = max(2, int(sorted(rows.lengths.tolist())[rows.num_rows // 2]))
    latency = measure_latency(
        model, batch_sizes=_LATENCY_BATCHES, length=length, device=pick_device(device, f"{key}.device")
    )
    facts = describe(model)
    if isinstance(experiment.student.shape, str) and key == "train":
        facts["description"] = experiment.student.shape
    else:
        facts["description"] = f"{model.config.model_type} {facts['layers']} x {facts['hidden']}"
    return {
        "parameters": count_parameters(model),
        "megabytes": round(model_megabytes(model), 2),
        **facts,
        "latency_ms": {f"batch_{size}": round(value, 4) for size, value in latency.items()} | {"tokens": length},
    }


def command_line() -> str:
    """The command that is running, as a user would type it."""
    import shlex

    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join([name, *sys.argv[1:]])
