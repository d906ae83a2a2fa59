"""Rules over several keys, and whether named files exist. Each rule runs if the sections it reads were valid."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from raybrew.config.changes import check_changes
from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig, MatchConfig
from raybrew.config.multi_checks import check_members, check_one_task, check_tasks
from raybrew.config.multi_task import MultiTaskConfig
from raybrew.config.paths import absolute, exists, unusable_path
from raybrew.config.problems import Problem, near_match, shown
from raybrew.config.stages import check_method, check_stages, check_steps, check_theseus
from raybrew.config.store import StoreConfig
from raybrew.config.student import WITHOUT_LAYERS, ShapeConfig, StudentConfig
from raybrew.config.task_checks import TASK_RULES
from raybrew.config.teacher import TeacherConfig
from raybrew.config.train import TrainConfig
from raybrew.signals import KINDS, parse_signal

__all__ = ["check_sections"]

#: A name with one of these endings is meant as a file, so a missing one is an error and no hub name.
_FILE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".gz", ".txt")

#: `name` or `owner/name`; anything else can only be a folder.
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

#: Training workers and teacher actors.
_MAX_WORKERS = 4096


def check_sections(sections: Mapping[str, Any], check_files: bool) -> list[Problem]:
    """Problems of combinations and, with `check_files`, of missing files."""
    task = sections.get("task")
    if isinstance(task, MultiTaskConfig):
        found = check_tasks(sections, task, lambda own: check_sections(own, check_files))
        if all(name in sections for name in ("distill", "train", "teacher")):
            found += check_changes(sections["distill"], sections["train"], sections["teacher"], task)
        return list(dict.fromkeys(found))
    problems: list[Problem] = []
    for names, rule in _RULES:
        if all(name in sections for name in names):
            problems += rule(*(sections[name] for name in names))
    problems += check_one_task(sections)
    if check_files:
        if "data" in sections:
            problems += _missing_data(sections["data"])
        for name in ("teacher", "student"):
            if name in sections:
                problems += _missing_model(name, sections[name].model)
        if "teacher" in sections:
            for name, member in sections["teacher"].members.items():
                problems += _missing_model(f"teacher.members.{name}", member.model)
        if "data" in sections and sections["data"].augment is not None:
            problems += _missing_model("data.augment", sections["data"].augment.model)
    return problems


def _data(data: DataConfig) -> list[Problem]:
    problems = []
    for name in ("train", "eval", "test", "unlabeled"):
        rows = f"{name}_rows"
        if getattr(data, rows) is not None and getattr(data, name) is None:
            problems.append(Problem(f"data.{rows}", f"given {getattr(data, rows)}, but data.{name} names no source"))
    for key, formats in (("delimiter", ("csv",)), ("header", ("csv", "tsv"))):
        if getattr(data, key) and data.format not in ("auto", *formats):
            problems.append(
                Problem(
                    f"data.{key}", f"given with data.format={data.format}; it is for files of {' and '.join(formats)}"
                )
            )
    if data.test_share is not None and data.train is None:
        problems.append(
            Problem(
                "data.test",
                f"given {data.test!r}, a share of data.train, which names no source; allowed without data.train: a "
                "file, a folder or a hub name",
            )
        )
    return [*problems, *unusable_path("data.cache", data.cache)]


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
    if train.changes and key != "train":
        problems.append(
            Problem(f"{key}.changes", "given; what changes as training goes on is a student's: train.changes")
        )
    if train.compile and train.parallel == "fsdp":
        problems.append(Problem(f"{key}.compile", "given with parallel 'fsdp'; allowed with 'ddp' only"))
    return problems


def _workers(key: str, train: TrainConfig) -> list[Problem]:
    given = list(train.workers) if isinstance(train.workers, tuple) else train.workers
    fewest, most = train.worker_range if given != [] else (0, 0)
    if (isinstance(given, list) and len(given) != 2) or not 1 <= fewest <= most <= _MAX_WORKERS:
        allowed = f"allowed: a number from 1 to {_MAX_WORKERS}, or [fewest, most] of them"
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
    problems = check_members(teacher)
    for name, member in teacher.members.items():
        if member.finetune is not None:
            problems += _train(f"teacher.members.{name}.finetune", member.finetune)
    if teacher.finetune is not None:
        problems += _train("teacher.finetune", teacher.finetune)
        if not teacher.given:
            problems.append(Problem("teacher.model", "required with teacher.finetune: the model that it starts from"))
    return problems


def _student(student: StudentConfig, teacher: TeacherConfig) -> list[Problem]:
    problems = []
    if student.model is not None and student.shape is not None:
        problems.append(Problem("student", f"given both model ({student.model!r}) and shape; allowed: one of them"))
    if student.shape is not None and not teacher.given:
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


def _without_layers(student: StudentConfig, distill: DistillConfig) -> list[Problem]:
    """What a recurrent student has none of."""
    if student.shape not in WITHOUT_LAYERS:
        return []
    problems = []
    if student.init == "truncate" or student.init_layers != "even":
        key = "init" if student.init == "truncate" else "init_layers"
        problems.append(
            Problem(f"student.{key}", f"given for {student.shape}, which has no layers of its teacher; remove it")
        )
    for key, losses in distill.keyed_parts:
        problems += [
            Problem(
                f"{key}.matches.{index}",
                f"{match.loss} compares {match.compares}, but {student.shape} has no attention; allowed: losses of "
                "hidden states (layer 0 are its embeddings, 1 its outputs) and pooled ones",
            )
            for index, match in enumerate(losses.matches)
            if match.weight > 0 and match.compares not in ("hidden", "pooled")
        ]
        if losses.emd is not None and losses.emd.attention > 0:
            problems.append(
                Problem(f"{key}.emd.attention", f"given, but {student.shape} has no attention; set it to 0")
            )
    return problems


def _vocabulary(student: StudentConfig) -> list[Problem]:
    if student.vocabulary is None or student.model is not None or student.shape is not None:
        return []
    return [Problem("student.vocabulary", "given without a student; name student.shape or student.model")]


def _distill(distill: DistillConfig, teacher: TeacherConfig) -> list[Problem]:
    problems = [*check_method(distill), *check_stages(distill)]
    for key, part in distill.keyed_parts:
        problems += _losses(key, part, teacher)
    if distill.asks_teacher and not teacher.given:
        problems.append(Problem("teacher.model", "required: distill.kd_weight, matches or emd ask for a teacher"))
    schedule = distill.temperature_schedule
    if schedule is not None and schedule.kind == "cwsm" and schedule.gamma is not None:
        problems.append(
            Problem("distill.temperature_schedule.gamma", f"given {schedule.gamma:g} with kind 'cwsm'; it is of 'flsw'")
        )
    # What several stages take from `distill` is told once.
    return list(dict.fromkeys(problems))


def _losses(key: str, losses: DistillConfig, teacher: TeacherConfig) -> list[Problem]:
    """Problems of what is learnt in one stage, whose section is `key`."""
    problems = []
    if losses.kd_weight == 0 and losses.hard_label_weight == 0 and not losses.compares_layers:
        problems.append(
            Problem(key, "kd_weight, hard_label_weight and all matches are 0: there is nothing to learn from")
        )
    for index, match in enumerate(losses.matches):
        problems += _match(f"{key}.matches.{index}", match)
        problems += _modules(f"{key}.matches.{index}", match, teacher)
    if losses.emd is not None:
        if teacher.members:
            problems.append(Problem(f"{key}.emd", "given with teacher.members; it is for one teacher"))
        if losses.emd.hidden == losses.emd.attention == 0:
            problems.append(Problem(f"{key}.emd", "hidden and attention are 0; set distill.emd=null to do without it"))
    return problems


def _match(key: str, match: MatchConfig) -> list[Problem]:
    problems = []
    first = match.first_layer
    if first is None:
        if match.layers != "even":
            problems.append(
                Problem(f"{key}.layers", f"given for {match.loss}, which compares one vector per row; remove layers")
            )
    elif isinstance(match.layers, tuple):
        counted = "0 being the embeddings" if first == 0 else "counted from 1"
        problems += [
            Problem(f"{key}.layers", f"given {list(pair)}; allowed: [student layer, teacher layer], {counted}")
            for pair in match.layers
            if len(pair) != 2 or min(pair, default=-1) < first
        ]
        if not match.layers:
            problems.append(Problem(f"{key}.layers", "an empty list matches nothing"))
    if match.projection not in ("auto", "none") and match.compares not in ("hidden", "pooled"):
        problems.append(
            Problem(
                f"{key}.projection",
                f"given {match.projection!r} for {match.loss}; allowed: auto, none (it has no width to project)",
            )
        )
    if match.compares == "qkv":
        if not match.relations or len(set(match.relations)) != len(match.relations):
            problems.append(
                Problem(
                    f"{key}.relations",
                    f"given {list(match.relations)}; allowed: some of query, key, value, attention, each once",
                )
            )
    else:
        problems += [
            Problem(f"{key}.{name}", f"given for {match.loss}; it is of relation_kl")
            for name in ("relations", "relation_heads")
            if getattr(match, name) != MatchConfig.model_fields[name].default
        ]
    if not match.is_own:
        problems += [
            Problem(f"{key}.{name}", f"given for {match.loss}; it is of functions of your own, package.module:function")
            for name in ("feature", "per")
            if getattr(match, name) is not None
        ]
    elif match.per in ("token", "pair") and match.compares == "pooled":
        problems.append(Problem(f"{key}.per", f"given {match.per!r} for pooled outputs, one vector per row; use row"))
    return problems


def _modules(key: str, match: MatchConfig, teacher: TeacherConfig) -> list[Problem]:
    given = {name: getattr(match, name) for name in ("student_module", "teacher_module")}
    if not any(given.values()):
        return []
    problems = [
        Problem(f"{key}.{name}", f"required: the match compares modules, and {other} is given")
        for name, other in zip(given, reversed(given), strict=True)
        if given[name] is None
    ]
    if match.compares != "hidden" or match.layers != "even" or match.preset is not None:
        problems.append(
            Problem(
                f"{key}.student_module",
                "given for what is no loss of hidden states, or beside layers, feature or preset; allowed: hidden_mse, "
                "cos, gram, mmd, pkd or a function of your own, alone",
            )
        )
    if teacher.members:
        problems.append(Problem(f"{key}.teacher_module", "given with teacher.members; it is for one teacher"))
    elif teacher.source != "live" and match.weight > 0:
        problems.append(
            Problem(
                f"{key}.teacher_module",
                f"given with teacher.source {teacher.source!r}; no store holds outputs of modules, set "
                "teacher.source=live",
            )
        )
    return problems


def _unlabeled(data: DataConfig, distill: DistillConfig) -> list[Problem]:
    problems = []
    if not distill.asks_teacher:
        problems += [
            Problem(
                f"data.{key}",
                "given, but the student learns from labels only (distill.kd_weight=0, no matches); "
                f"set data.{key}=null for a control",
            )
            for key in ("unlabeled", "augment")
            if getattr(data, key)
        ]
    if data.train is None and data.unlabeled is not None:
        problems += [
            Problem(
                f"{key}.hard_label_weight", f"given {part.hard_label_weight:g}, but there is no data.train with labels"
            )
            for key, part in distill.keyed_parts
            if part.hard_label_weight > 0
        ]
    return problems


def _store(store: StoreConfig) -> list[Problem]:
    problems = []
    actors = store.actors
    if actors is not None and (len(actors) != 2 or not 1 <= actors[0] <= actors[1] <= _MAX_WORKERS):
        allowed = f"allowed: [fewest, most], both from 1 to {_MAX_WORKERS}"
        problems.append(Problem("store.actors", f"given {list(actors)}; {allowed}"))
    for signal in store.signals:
        try:
            parse_signal(signal)
        except ValueError as error:
            problems.append(Problem("store.signals", str(error)))
    for kind in store.forms:
        if kind not in KINDS:
            words = f"no kind of signal; allowed: {', '.join(KINDS)}{near_match(kind, KINDS)}"
            problems.append(Problem(f"store.forms.{kind}", words))
    for key in ("storage_path", "cache"):
        value = getattr(store, key)
        if value is not None and "://" in value:
            problems.append(Problem(f"store.{key}", f"given {value!r}; allowed: a local or shared (NFS) folder"))
        problems += unusable_path(f"store.{key}", value)
    if store.path is not None and "://" in store.path:
        problems += _store_url(store.path)
    return [*problems, *unusable_path("store.path", store.path)]


def _early_stopping(data: DataConfig, train: TrainConfig, teacher: TeacherConfig, task: Any) -> list[Problem]:
    if data.eval is not None or task.kind == "multi":  # each of several tasks has rows of its own
        return []
    return [
        Problem(f"{key}.early_stopping", "given without data.eval: nothing is evaluated that it could stop at")
        for key, config in (("train", train), ("teacher.finetune", teacher.finetune))
        if config is not None and config.early_stopping is not None
    ]


def _student_layers(distill: DistillConfig, train: TrainConfig) -> list[Problem]:
    """What is not among a model's outputs is collected while a layer runs once, as it is written."""
    matches = [match for part in distill.parts for match in part.matches if match.weight > 0]
    inside = sorted({match.loss for match in matches if match.compares != "hidden"})
    if any(part.emd is not None and part.emd.attention > 0 for part in distill.parts):
        inside.append("emd.attention")
    if any(match.student_module is not None for match in matches):
        inside.append("student_module")
    if not inside:
        return []
    return [
        Problem(
            f"train.{key}",
            f"given with {', '.join(inside)} in distill.matches, which look inside layers; allowed: {key}=false, or "
            "matches on hidden states",
        )
        for key in ("compile", "gradient_checkpointing")
        if getattr(train, key)
    ]


def _store_url(url: str) -> list[Problem]:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        # Not repeated: what stands before the @ is a secret.
        return [Problem("store.path", "holds credentials; give them in the environment, never in a URL")]
    if parts.scheme not in ("s3", "gs") or not parts.netloc or parts.query or parts.fragment:
        return [Problem("store.path", f"given {url!r}; allowed: a folder, s3://bucket/prefix or gs://bucket/prefix")]
    return []


def _missing_data(data: DataConfig) -> list[Problem]:
    problems = []
    for key in ("train", "eval", "test", "unlabeled"):
        source = getattr(data, key)
        if source is None or data.format == "hub" or (key == "test" and data.test_share is not None):
            continue
        meant_as_file = source.startswith(("/", ".", "~")) or source.lower().endswith(_FILE_ENDINGS)
        if meant_as_file and not exists(source) and not exists(source.rsplit(":", 1)[0]):
            problems.append(Problem(f"data.{key}", f"given {shown(source)}; no such file: {absolute(source)}"))
    return problems


def _missing_model(name: str, model: str | None) -> list[Problem]:
    if model is None:
        return []
    if exists(model, folder=True) or _HUB_NAME.fullmatch(model):
        return []
    return [Problem(f"{name}.model", f"given {shown(model)}; no such folder: {absolute(model)}")]


_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[Problem]]], ...] = (
    (("data",), _data),
    (("train",), lambda train: _train("train", train)),
    (("teacher",), _teacher),
    (("student", "teacher"), _student),
    (("distill", "teacher"), _distill),
    (("student", "distill"), _without_layers),
    (("student",), _vocabulary),
    (("data", "distill"), _unlabeled),
    (("distill", "train"), _student_layers),
    (("distill", "train"), check_steps),
    (("distill", "train", "student", "teacher", "task"), check_theseus),
    (("distill", "train", "teacher", "task"), check_changes),
    (("data", "train", "teacher", "task"), _early_stopping),
    (("store",), _store),
    *TASK_RULES,
)
