"""The commented experiment file of `raybrew init`, made from the configs themselves so that it cannot fall behind."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from raybrew.catalog.tasks import DEFAULT_KIND, TASKS
from raybrew.config.base import Section
from raybrew.config.data import Columns
from raybrew.config.experiment import Experiment
from raybrew.config.kinds import MULTI
from raybrew.config.multi_task import MultiTaskConfig
from raybrew.config.sweep import SweepConfig
from raybrew.config.task import TASK_CONFIGS

__all__ = ["experiment_template"]

_INTRODUCTION = """\
# An experiment of raybrew: finetune, capture, distill and sweep read this file.
#   raybrew validate {file}      check it
#   raybrew finetune {file}      train the teacher on labels
#   raybrew capture {file}       run the teacher once, keep its outputs
#   raybrew distill {file}       train the student, write a report
#   raybrew sweep {file}         try many students on one teacher pass, write a report
# Any value can be overridden on the command line: raybrew distill {file} train.seed=1
# Lines that are commented out show the defaults. `raybrew list` names the losses, matches, shapes and tasks.
"""

#: What a new file sets; everything else is shown commented out.
_SET: Mapping[str, Any] = {
    "name": "my-experiment",
    "data.train": "train.jsonl",
    "data.eval": "eval.jsonl",
    "data.test": "10%",
    "teacher.model": "path/or/hub-name",
    "teacher.finetune": {"epochs": 3, "learning_rate": 3.0e-5},
    "student.shape": "T3",
    "distill.temperature": 8.0,
    "distill.matches": [{"loss": "hidden_mse", "layers": "even", "weight": 1.0}],
    "train.epochs": 30,
    "train.learning_rate": 1.0e-4,
}

#: An example of several tasks, each with sections of its own instead of `data` and `teacher`.
_TASKS: Mapping[str, Any] = {
    name: {
        "task": {"kind": DEFAULT_KIND},
        "data": {"train": f"{name}-train.jsonl", "eval": f"{name}-eval.jsonl"},
        "teacher": {"model": "path/or/hub-name", "finetune": {"epochs": 3}},
    }
    for name in ("one", "other")
}

#: An example of a space, for a section that is commented out as a whole.
_SPACE = {"distill.temperature": [1, 4, 8], "student.shape": ["T3", "T6"]}


def experiment_template(file: str = "experiment.yaml", task: str = DEFAULT_KIND) -> str:
    """The text of a new experiment file called `file`, for tasks of the kind `task`."""
    parts = [_INTRODUCTION.format(file=file)]
    for name, field in Experiment.model_fields.items():
        section = {**TASK_CONFIGS, MULTI: MultiTaskConfig}[task] if name == "task" else field.annotation
        parts.append("")
        if isinstance(section, type) and issubclass(section, Section):
            first = (section.__doc__ or "").strip().splitlines()[0]
            parts += [f"# {first}", f"{name}:"]
            parts += _lines(section, name, "  ", task)
        elif name == "name":
            parts += [*_comment(field, ""), f"name: {_SET['name']}"]
        else:  # a section that may be missing is shown, but not set
            parts += [
                *_comment(field, ""),
                f"# {name}:",
                *(f"# {line}" for line in _lines(SweepConfig, name, "  ", task)),
            ]
    return "\n".join(parts) + "\n"


def _lines(section: type[Section], prefix: str, indent: str, task: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        key = f"{prefix}.{name}"
        yield from _comment(field, indent)
        if key == "task.kind":
            yield f"{indent}kind: {task}"
        elif key == "task.tasks":
            yield f"{indent}{name}:"
            for each in _TASKS:
                yield f"{indent}  {each}: {_flow(_TASKS[each])}"
        elif key == "data.columns" and task in TASKS:
            given = {column: getattr(Columns(), column) for column in TASKS[task].columns}
            yield f"{indent}# columns: {_flow(given)}"
        elif key == "sweep.space":
            yield f"{indent}{name}: {_flow(_SPACE)}"
        elif key in _SET and not (task == MULTI and key.startswith(("data.", "teacher."))):
            yield f"{indent}{name}: {_flow(_SET[key])}"
        else:
            default = field.get_default(call_default_factory=True)
            if isinstance(default, Section):
                default = default.model_dump(mode="json")
            yield f"{indent}# {name}: {_flow(list(default) if isinstance(default, tuple) else default)}"


def _comment(field: FieldInfo, indent: str) -> Iterator[str]:
    if field.description:
        text = " ".join(field.description.split())
        yield from textwrap.wrap(text, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000)
    return text.strip().removesuffix("...").strip()
