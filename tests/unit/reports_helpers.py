"""Run folders as training leaves them, made up: for the tests of reports."""

from __future__ import annotations

import copy
import json
import math
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raybrew.tasks.scores import answers_key, label_counts, one_hot, save_scores

TEACHER_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CONFIG: dict[str, Any] = {
    "name": "reviews",
    "task": {"kind": "classification", "metric": "accuracy", "max_length": 128},
    "data": {"train": "reviews/train.tsv", "eval": "reviews/dev.tsv", "unlabeled": None},
    "teacher": {"model": TEACHER_MODEL, "finetune": {"epochs": 3, "learning_rate": 3e-5, "seed": 0}},
    "student": {"model": None, "shape": {"layers": 4, "hidden": 312}, "init": "teacher"},
    "distill": {
        "temperature": 8.0,
        "kd_loss": {"kind": "ce"},
        "kd_weight": 1.0,
        "hard_label_weight": 0.5,
        "matches": [{"loss": "hidden_mse", "layers": "even", "weight": 1.0}],
    },
    "train": {"epochs": 10, "batch_size": 32, "learning_rate": 1e-4, "warmup": 0.1, "seed": 0},
    "store": {"storage_path": "runs"},
}
ENVIRONMENT: dict[str, Any] = {
    "raybrew": "0.1.0",
    "python": "3.11.2",
    "torch": "2.13.0",
    "ray": "2.60.0",
    "transformers": "5.23.0",
    "commit": "3f2a9c1d0b7e",
    "machine": {"cpus": 8, "cpu": "AMD EPYC 7763", "memory_gib": 31.4, "gpus": ["NVIDIA H200"]},
}
CONDITIONS: dict[str, Any] = {
    "device": "cuda (NVIDIA H200)",
    "machine": "8 x AMD EPYC 7763, 1 x NVIDIA H200",
    "precision": "bf16",
    "threads": 8,
    "tokens": 24,
    "rounds": 5,
    "alone": True,
}
SIZES = {
    "teacher": {"parameters": 22_713_986, "megabytes": 90.9, "architecture": "BertForSequenceClassification"},
    "student": {"parameters": 14_351_000, "megabytes": 57.4, "description": "BERT 4x312"},
}


def make_run(
    root: Path,
    role: str = "student",
    *,
    seed: int = 0,
    accuracy: float = 0.9,
    steps: int = 1000,
    run_id: str | None = None,
    changes: dict[str, dict[str, Any]] | None = None,
    summary: dict[str, Any] | None = None,
    done: bool = True,
    events: tuple[tuple[int, str, str], ...] = (),
    teacher_accuracy: float | None = 0.92,
    latency: tuple[float, float] | None = (1.21, 0.19),
    teacher_latency: tuple[float, float] | None = None,
    conditions: dict[str, Any] | None = None,
    student: dict[str, Any] | None = None,
    name: str = "reviews",
) -> Path:
    """A run of `role` that reaches `accuracy`; `changes` go into sections of the config, `summary` over the summary.

    `latency` and `teacher_latency` are milliseconds at batch 1 and 32, measured in one round under `conditions`.
    """
    config = copy.deepcopy(CONFIG) | {"name": name}
    verb = "finetune" if role == "teacher" else "distill"
    if verb == "finetune":
        config["teacher"]["finetune"]["seed"] = seed
    else:
        config["train"]["seed"] = seed
    if role == "control":
        config["distill"] |= {"kd_weight": 0.0, "hard_label_weight": 1.0, "matches": []}
    for section, values in (changes or {}).items():
        config[section] = config[section] | values
    names = (
        ("task", "data", "teacher")
        if verb == "finetune"
        else ("task", "data", "teacher", "student", "distill", "train")
    )
    run_id = run_id or f"{verb}-{role}-{seed}-{zlib.crc32(json.dumps(config, sort_keys=True).encode()):08x}"
    folder = root / name / run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    identity = {"verb": verb, "identity": {key: config[key] for key in names}, "inputs": {}}
    (folder / "identity.json").write_text(json.dumps(identity), encoding="utf-8")
    command = f"raybrew {verb} experiments/{name}.yaml train.seed={seed}"
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | {"command": command}), encoding="utf-8")
    _write_metrics(folder / "metrics.jsonl", role, seed, accuracy, steps, done, events)
    if done:
        metrics = {"accuracy": accuracy, "macro_f1": accuracy - 0.004, "mcc": 2 * accuracy - 1}
        size = SIZES["teacher" if role == "teacher" else "student"] | (student or {})
        whole = {
            "verb": verb,
            "name": name,
            "run_id": run_id,
            "status": "done",
            "role": role,
            "seed": seed,
            "student": size,
            "teacher": None
            if role == "teacher"
            else {
                "model": TEACHER_MODEL,
                "fingerprint": "5c1f",
                "parameters": SIZES["teacher"]["parameters"],
                "megabytes": 90.9,
                "metrics": None if teacher_accuracy is None else {"accuracy": teacher_accuracy},
            },
            "best": {"step": steps, "epoch": 10.0, "metric": "accuracy", "value": accuracy, "metrics": metrics},
            "last": {"metrics": metrics},
            "steps": steps,
            "epochs": 10.0,
            "rows": {"train": 3200, "unlabeled": 0, "eval": 872},
            "wall_seconds": 0.19 * steps,
            "device": "cuda",
        }
        if role == "teacher":
            whole["base_model"] = TEACHER_MODEL
        if latency is not None:
            whole["latency_ms"] = {"batch_1": latency[0], "batch_32": latency[1], "tokens": 24}
            whole["latency"] = {
                **CONDITIONS,
                "round": f"round of {run_id}",
                **(conditions or {}),
                "student": _by_batch(latency),
                "teacher": None if teacher_latency is None else _by_batch(teacher_latency),
            }
        (folder / "summary.json").write_text(json.dumps(whole | (summary or {})), encoding="utf-8")
    return folder


def _by_batch(times: tuple[float, float]) -> dict[str, float]:
    return {"batch_1": times[0], "batch_32": times[1]}


def _write_metrics(
    path: Path, role: str, seed: int, accuracy: float, steps: int, done: bool, events: tuple[tuple[int, str, str], ...]
) -> None:
    noise = random.Random(seed * 7919 + len(role))
    reached = steps if done else steps // 2
    lines: list[dict[str, Any]] = [{"step": 0, "time": 0.0, "kind": "event", "event": "started", "message": "started"}]
    every = max(1, steps // 10)
    for step in range(10, reached + 1, 10):
        at = {"step": step, "epoch": step / every, "time": 0.19 * step}
        fade = math.exp(-4 * step / steps)
        terms = {"loss/label": 0.22 + 0.5 * fade}
        if role == "student":
            terms |= {"loss/kd": 2.1 + 9 * fade, "loss/hidden_mse": 0.08 + 0.6 * fade}
        terms = {name: value * (1 + 0.08 * noise.gauss(0, 1)) for name, value in terms.items()}
        warm = min(1.0, step / (0.1 * steps))
        rate = 1e-4 * warm * (1 - max(0.0, step / steps - 0.1) / 0.9)
        speed = {"samples_per_second": 168.0, "grad_norm": 0.9}
        total = sum(terms.values())
        lines.append(at | {"kind": "train", "loss": total} | terms | {"learning_rate": rate} | speed)
        if step % every == 0:
            value = accuracy - 0.16 * math.exp(-5 * step / steps) + 0.003 * noise.gauss(0, 1) * (step != steps)
            evaluated = {"eval/accuracy": value, "eval/macro_f1": value - 0.004, "eval/rows": 872}
            lines.append(at | {"kind": "eval"} | evaluated | {"best": True})
    for step, event, message in events:
        lines.append({"step": step, "time": 0.19 * step, "kind": "event", "event": event, "message": message})
    if done:
        lines.append({"step": steps, "time": 0.19 * steps, "kind": "event", "event": "finished", "message": "finished"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def add_answers(folder: Path, name: str, truth: Sequence[int], answers: Sequence[int], labels: Sequence[str]) -> float:
    """Row scores `name` of a classifier in a run folder, and its accuracy."""
    size, gold, given = len(labels), np.asarray(truth), np.asarray(answers)
    scores = label_counts(
        "classes",
        labels,
        right=one_hot(np.where(gold == given, gold, -1), size),
        named=one_hot(given, size),
        true=one_hot(gold, size),
        key=answers_key(gold),
    )
    save_scores(folder / "scores" / f"{name}.npz", scores)
    return scores.metrics()["accuracy"]


def judged_run(
    root: Path,
    role: str,
    truth: Sequence[int],
    answers: dict[str, Sequence[int]],
    labels: Sequence[str] = ("no", "yes"),
    **options: Any,
) -> Path:
    """A run with row scores: `answers` by name (`eval`, `test`, `teacher-eval`, `teacher-test`), all to `truth`."""
    means = {name: float(np.mean(np.asarray(truth) == np.asarray(given))) for name, given in answers.items()}
    facts: dict[str, Any] = {"rows": {"train": 3200, "unlabeled": 0, "eval": len(truth)}}
    if "test" in answers:
        metrics = {"accuracy": means["test"]}
        facts["test"] = {"metrics": metrics, "value": means["test"], "metric": "accuracy", "rows": len(truth),
                         "source": "test.tsv"}  # fmt: skip
    if "teacher-test" in answers:
        facts["teacher"] = {
            "model": TEACHER_MODEL,
            "parameters": SIZES["teacher"]["parameters"],
            "metrics": {"accuracy": means.get("teacher-eval", means["teacher-test"])},
            "test": {"metrics": {"accuracy": means["teacher-test"]}, "rows": len(truth)},
        }
    options = {"teacher_accuracy": means.get("teacher-eval"), **options}
    folder = make_run(root, role, accuracy=means["eval"], summary=facts | options.pop("summary", {}), **options)
    for name, given in answers.items():
        add_answers(folder, name, truth, given, labels)
    return folder
