"""inspect: what a model, or student and teacher of an experiment, are made of and how fast they run, from configs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from raybrew.catalog.tasks import TASKS, kinds_by_head
from raybrew.config import Experiment
from raybrew.config.loading import load_experiment
from raybrew.errors import ConfigError
from raybrew.models.devices import pick_device
from raybrew.models.inspection import Flops, ParameterNode, count_flops, describe, display_parameters
from raybrew.models.latency import BATCHES, measure_in_turn
from raybrew.models.loading import ModelSource, load_config, max_tokens, model_labels
from raybrew.models.students import empty_student, random_model
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import Resolved, ResolvedTask, resolve
from raybrew.pipeline.rows import read_rows
from raybrew.pipeline.vocabulary import student_tokens
from raybrew.training.run_folder import RunFolder

__all__ = ["Inspected", "inspect"]

_LENGTH = 128
#: End of an architecture's name -> the usual task of its head.
_HEADS: Mapping[str, str] = {head: kinds[0] for head, kinds in kinds_by_head().items()}


@dataclasses.dataclass(frozen=True)
class Inspected:
    """One model. Sizes are those of float32, in which raybrew keeps weights."""

    source: str
    """Where its config comes from."""
    facts: Mapping[str, Any]
    """`raybrew.models.inspection.describe`: architecture, sizes, parameters, megabytes."""
    modules: ParameterNode
    """Parameters by module; a tensor that appears twice counts where it comes up first."""
    flops: Flops
    latency_ms: Mapping[str, float]
    """`batch_1`, ... -> milliseconds per example, measured in turn with the other models; empty if not measured."""
    device: str

    def plain(self, level: int | None = None) -> dict[str, Any]:
        """All of it as plain JSON types, modules down to `level` levels (None: all)."""
        return {
            "source": self.source,
            **self.facts,
            "flops_per_token": {
                "tokens": self.flops.length,
                "weights": self.flops.weights,
                "attention": self.flops.products,
                "total": self.flops.total,
            },
            "latency_ms": dict(self.latency_ms),
            "device": self.device,
            "modules": _plain(self.modules, self.modules.parameters, level),
        }


def inspect(
    target: Experiment | str | Path,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    length: int | None = None,
    latency: bool = True,
    batch_sizes: Sequence[int] = BATCHES,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> dict[str, Inspected]:
    """Parameters per module, bytes, operations per token and latency of models by their names.

    `target`: an experiment or its file (student and each teacher; of several tasks as `task: student`), or a model's
    folder or hub name (`model`). Only configs are read, and models built from them with random weights, on which
    neither sizes nor times depend: nothing is trained, and what is not trained yet is shown as it will be. Rows are
    read only where nothing else tells how many labels there are.

    `length`: tokens of a row in `flops` and `latency_ms`; by default 128, or as many as the models can take.
    ConfigError and ModelError name what does not exist or fit.
    """
    reporter = reporter or QuietReporter()
    if isinstance(target, Experiment) or str(target).endswith((".yaml", ".yml")):
        experiment = target if isinstance(target, Experiment) else load_experiment(target, overrides)
        found = _of_experiment(experiment, task, reporter)
    else:
        if overrides or task is not None:
            raise ConfigError(f"inspect: {target} is a model; overrides and a task are for experiment files")
        source = ModelSource(str(target))
        config = load_config(source)
        found = {"model": (str(target), config, _head_of(config))}
    length = _fitting_length(length, [config for _, config, _ in found.values()])
    place = pick_device(device, "--device")
    times: Mapping[str, Mapping[str, float]] = {}
    if latency:
        reporter.say(f"measuring {', '.join(found)} in turn ...")
        builds = {name: functools.partial(_to_time, config, head) for name, (_, config, head) in found.items()}
        times = measure_in_turn(builds, length=length, device=place, batch_sizes=batch_sizes).milliseconds
    result = {}
    for name, (source_name, config, head) in found.items():
        model = _built(config, head)
        flops = count_flops(model, length)
        result[name] = Inspected(
            source_name, describe(model), display_parameters(model)[1], flops, times.get(name, {}), str(place)
        )
    return result


def _of_experiment(
    experiment: Experiment, chosen: str | None, reporter: Reporter
) -> dict[str, tuple[str, PretrainedConfig, str]]:
    """Name -> where from, config and kind of task of the student and each teacher."""
    resolved = resolve(experiment, or_base=True)
    has_student = experiment.student.model is not None or experiment.student.shape is not None
    shape = resolved.shape
    found: dict[str, tuple[str, PretrainedConfig, str]] = {}
    for task in resolved.chosen(chosen):
        start = f"{task.label}: " if task.label else ""
        if not has_student and not task.teachers:
            raise ConfigError("inspect: the experiment names neither a student nor a teacher")
        labels = _labels(task, reporter)
        if has_student:
            folder = RunFolder.of(experiment, "distill").student / task.label
            if folder.is_dir():
                student = load_config(ModelSource(str(folder)))
                said = str(folder)
            else:
                student = empty_student(task.student, shape, task.kind, labels, _vocabulary(resolved, shape)).config
                said = experiment.student.model or "not trained yet: built from its shape"
            found[f"{start}student"] = (said, student, task.kind)
        for teacher in task.teachers:
            config = load_config(teacher.source)
            if config.num_labels != len(labels):
                config.num_labels = len(labels)  # of a teacher to be fine-tuned
            found[f"{start}teacher {teacher.label}".rstrip()] = (teacher.source.model, config, task.kind)
    return found


def _vocabulary(resolved: Resolved, shape: ModelSource | None) -> Path | None:
    """The folder of the trimmed vocabulary that the student will have, made from the rows, if it will have one."""
    if resolved.experiment.student.vocabulary is None:
        return None
    rows = [read_rows(task, task.first_source, lambda _: None).training for task in resolved.tasks]
    return Path(student_tokens(resolved, shape, rows, lambda _: None).model)


def _labels(task: ResolvedTask, reporter: Reporter) -> tuple[str, ...]:
    """Label names of the task: fixed ones, those of a finished teacher, or those of the rows."""
    fixed, teacher = task.task.fixed_labels, task.first_source
    if fixed is not None:
        return fixed.names
    if teacher is not None and (task.teacher.finetune is None or task.data.train is None):
        config = load_config(teacher)
        return model_labels(config) or tuple(f"LABEL_{index}" for index in range(config.num_labels or 0))
    return read_rows(task, teacher, reporter.say, with_unlabeled=False).labels.names


def _head_of(config: PretrainedConfig) -> str:
    """Kind of task by the architecture that a model was saved with, its whole name if it is of none."""
    name = (config.architectures or [""])[0]
    return next((kind for end, kind in _HEADS.items() if name.endswith(end)), name)


def _built(config: PretrainedConfig, head: str) -> PreTrainedModel:
    if head in TASKS:
        return random_model(config, head)
    return random_model(config, AutoModel)


def _to_time(config: PretrainedConfig, head: str) -> list[PreTrainedModel]:
    return [_built(config, head)]


def _fitting_length(wanted: int | None, configs: Sequence[PretrainedConfig]) -> int:
    most = min((places for config in configs if (places := max_tokens(config)) is not None), default=None)
    if wanted is None:
        return _LENGTH if most is None else min(most, _LENGTH)
    if wanted < 1 or (most is not None and wanted > most):
        raise ConfigError(f"--length: given {wanted}; allowed: 1 to {most or 'any number of'} tokens")
    return wanted


def _plain(node: ParameterNode, total: int, level: int | None) -> dict[str, Any]:
    below = None if level is None else level - 1
    return {
        "name": node.name,
        "parameters": node.parameters,
        "share": node.parameters / total if total else 0.0,
        "megabytes": node.bytes / 10**6,
        "shared": node.shared,
        "modules": [] if level == 0 else [_plain(child, total, below) for child in node.children.values()],
    }
