"""Rules over several keys, and whether named files exist. Each rule runs if the sections it reads were valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig, MatchConfig
from raybrew.config.problems import Problem
from raybrew.config.store import StoreConfig
from raybrew.config.student import ShapeConfig, StudentConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.config.train import TrainConfig
from raybrew.signals import parse_signal

__all__ = ["check_sections"]

#: A name with one of these endings is meant as a file, so a missing one is an error and no hub name.
_FILE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".gz", ".txt")


def check_sections(sections: Mapping[str, Any], check_files: bool) -> list[Problem]:
    """Problems of combinations and, with `check_files`, of missing files."""
    problems: list[Problem] = []
    for names, rule in _RULES:
        if all(name in sections for name in names):
            problems += rule(*(sections[name] for name in names))
    if check_files:
        if "data" in sections:
            problems += _missing_data(sections["data"])
        for name in ("teacher", "student"):
            if name in sections:
                problems += _missing_model(name, sections[name].model)
    return problems


def _data(data: DataConfig) -> list[Problem]:
    problems = []
    for rows, source in (("train_rows", data.train), ("eval_rows", data.eval), ("unlabeled_rows", data.unlabeled)):
        name = rows.removesuffix("_rows")
        if getattr(data, rows) is not None and source is None:
            problems.append(Problem(f"data.{rows}", f"given {getattr(data, rows)}, but data.{name} names no source"))
    columns = [data.columns.text, data.columns.label] + ([data.columns.text_pair] if data.columns.text_pair else [])
    if len(set(columns)) != len(columns):
        problems.append(Problem("data.columns", f"given {', '.join(columns)}; each column must be another one"))
    return problems


def _train(key: str, train: TrainConfig) -> list[Problem]:
    problems = []
    for part, whole in (("micro_batch_size", "batch_size"), ("micro_batch_tokens", "batch_tokens")):
        small, large = getattr(train, part), getattr(train, whole)
        if part == "micro_batch_size" and train.batch_tokens is not None:
            continue  # batch_size is not used
        if small is not None and large is not None and small > large:
            problems.append(
                Problem(
                    f"{key}.{part}", f"given {small}; allowed: at most {key}.{whole} ({large}), of which it is a part"
                )
            )
    problems += _workers(key, train)
    for steps, epochs in (("eval_steps", "eval_epochs"), ("checkpoint_steps", "checkpoint_epochs")):
        if getattr(train, steps) is not None and getattr(train, epochs) is not None:
            problems.append(Problem(f"{key}.{epochs}", f"given beside {key}.{steps}; allowed: one of them"))
    if train.precision == "fp16" and train.device == "cpu":
        problems.append(Problem(f"{key}.precision", "given 'fp16' with device 'cpu'; allowed there: fp32, bf16"))
    if train.compile and train.parallel == "fsdp":
        problems.append(Problem(f"{key}.compile", "given with parallel 'fsdp'; allowed with 'ddp' only"))
    return problems


def _workers(key: str, train: TrainConfig) -> list[Problem]:
    given = list(train.workers) if isinstance(train.workers, tuple) else train.workers
    fewest, most = train.worker_range if given != [] else (0, 0)
    if (isinstance(given, list) and len(given) != 2) or fewest < 1 or most < fewest:
        allowed = "allowed: a number of at least 1, or [fewest, most] of them"
        return [Problem(f"{key}.workers", f"given {given}; {allowed}")]
    problems = []
    if most > train.batch_size and train.batch_tokens is None:
        problems.append(
            Problem(
                f"{key}.workers",
                f"given {given}; allowed: at most {key}.batch_size ({train.batch_size}), "
                "which is divided among the workers",
            )
        )
    if train.launcher == "local" and most > 1:
        problems.append(
            Problem(
                f"{key}.launcher",
                f"given 'local' with {key}.workers={given}; `local` runs one worker, use 'ray' or 'auto'",
            )
        )
    return problems


def _teacher(teacher: TeacherConfig) -> list[Problem]:
    problems = []
    if teacher.finetune is not None:
        problems += _train("teacher.finetune", teacher.finetune)
        if teacher.model is None:
            problems.append(Problem("teacher.model", "required with teacher.finetune: the model that it starts from"))
    return problems


def _student(student: StudentConfig, teacher: TeacherConfig) -> list[Problem]:
    problems = []
    if student.model is not None and student.shape is not None:
        problems.append(Problem("student", f"given both model ({student.model!r}) and shape; allowed: one of them"))
    if student.shape is not None and teacher.model is None:
        problems.append(Problem("student.shape", "needs teacher.model, whose architecture and vocabulary it takes"))
    if student.model is not None:
        for key, default in (("init", "auto"), ("init_layers", "even")):
            if getattr(student, key) != default:
                problems.append(Problem(f"student.{key}", "applies to student.shape only, but student.model is given"))
    if isinstance(student.init_layers, tuple):
        layers = student.shape.layers if isinstance(student.shape, ShapeConfig) else None
        if layers is not None and len(student.init_layers) != layers:
            problems.append(
                Problem("student.init_layers", f"given {len(student.init_layers)} layers for a student of {layers}")
            )
        if any(layer < 1 for layer in student.init_layers):
            problems.append(
                Problem("student.init_layers", f"given {list(student.init_layers)}; layers are counted from 1")
            )
    shape = student.shape
    if isinstance(shape, ShapeConfig) and shape.hidden and shape.heads and shape.hidden % shape.heads:
        problems.append(
            Problem("student.shape.heads", f"given {shape.heads}; allowed: a divisor of hidden ({shape.hidden})")
        )
    return problems


def _distill(distill: DistillConfig, teacher: TeacherConfig) -> list[Problem]:
    problems = []
    if distill.kd_weight == 0 and distill.hard_label_weight == 0 and not any(m.weight for m in distill.matches):
        problems.append(
            Problem("distill", "kd_weight, hard_label_weight and all matches are 0: there is nothing to learn from")
        )
    needs_teacher = distill.kd_weight > 0 or any(match.weight for match in distill.matches)
    if needs_teacher and teacher.model is None:
        problems.append(Problem("teacher.model", "required: distill.kd_weight or distill.matches ask for a teacher"))
    schedule = distill.temperature_schedule
    if schedule is not None and schedule.kind == "cwsm" and schedule.gamma is not None:
        problems.append(
            Problem("distill.temperature_schedule.gamma", f"given {schedule.gamma:g} with kind 'cwsm'; it is of 'flsw'")
        )
    for index, match in enumerate(distill.matches):
        problems += _match(f"distill.matches.{index}", match, teacher)
    return problems


def _match(key: str, match: MatchConfig, teacher: TeacherConfig) -> list[Problem]:
    problems = []
    attention = match.feature == "attention"
    first, counted = (1, "counted from 1") if attention else (0, "0 being the embeddings")
    if isinstance(match.layers, tuple):
        problems += [
            Problem(f"{key}.layers", f"given {list(pair)}; allowed: [student layer, teacher layer], {counted}")
            for pair in match.layers
            if len(pair) != 2 or min(pair, default=-1) < first
        ]
        if not match.layers:
            problems.append(Problem(f"{key}.layers", "an empty list matches nothing"))
    if attention and match.projection not in ("auto", "none"):
        problems.append(
            Problem(
                f"{key}.projection",
                f"given {match.projection!r} for {match.loss}; allowed: auto, none (attention has no width to project)",
            )
        )
    if attention and match.weight > 0 and teacher.source == "store":
        problems.append(
            Problem(
                f"{key}.loss",
                f"given {match.loss!r} with teacher.source 'store', which holds no attention; use teacher.source=live "
                "(or auto, which then runs the teacher live)",
            )
        )
    return problems


def _unlabeled(data: DataConfig, distill: DistillConfig) -> list[Problem]:
    if data.unlabeled and distill.kd_weight == 0 and not any(match.weight for match in distill.matches):
        return [
            Problem(
                "data.unlabeled",
                "given, but the student learns from labels only (distill.kd_weight=0, no matches); "
                "set data.unlabeled=null for a control",
            )
        ]
    return []


def _store(store: StoreConfig) -> list[Problem]:
    problems = []
    if len(store.actors) != 2 or store.actors[0] < 1 or store.actors[1] < store.actors[0]:
        problems.append(
            Problem("store.actors", f"given {list(store.actors)}; allowed: [fewest, most], both at least 1")
        )
    for signal in store.signals:
        try:
            parse_signal(signal)
        except ValueError as error:
            problems.append(Problem("store.signals", str(error)))
    for key in ("storage_path", "path"):
        value = getattr(store, key)
        if value is not None and "://" in value:
            problems.append(Problem(f"store.{key}", f"given {value!r}; allowed: a local or shared (NFS) folder"))
    return problems


def _student_layers(distill: DistillConfig, train: TrainConfig) -> list[Problem]:
    """Attention scores are collected while a layer runs once, as it is written."""
    if not any(match.feature == "attention" and match.weight > 0 for match in distill.matches):
        return []
    return [
        Problem(f"train.{key}", f"given with matches on attention (distill.matches); allowed: {key}=false, or others")
        for key in ("compile", "gradient_checkpointing")
        if getattr(train, key)
    ]


def _missing_data(data: DataConfig) -> list[Problem]:
    problems = []
    for key in ("train", "eval", "unlabeled"):
        source = getattr(data, key)
        if source is None or data.format == "hub":
            continue
        path = Path(source).expanduser()
        meant_as_file = path.is_absolute() or source.startswith((".", "~")) or source.lower().endswith(_FILE_ENDINGS)
        if meant_as_file and not path.exists() and not Path(source.rsplit(":", 1)[0]).exists():
            problems.append(Problem(f"data.{key}", f"given {source!r}; no such file: {path.absolute()}"))
    return problems


def _missing_model(name: str, model: str | None) -> list[Problem]:
    if model is None:
        return []
    path = Path(model).expanduser()
    if (path.is_absolute() or model.startswith((".", "~"))) and not path.is_dir():
        return [Problem(f"{name}.model", f"given {model!r}; no such folder: {path.absolute()}")]
    return []


_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[Problem]]], ...] = (
    (("data",), _data),
    (("train",), lambda train: _train("train", train)),
    (("teacher",), _teacher),
    (("student", "teacher"), _student),
    (("distill", "teacher"), _distill),
    (("data", "distill"), _unlabeled),
    (("distill", "train"), _student_layers),
    (("store",), _store),
)
