"""A project of an ordinary user in a folder: rows in files, a small untrained BERT, an experiment file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification
from warm_cli import WarmProcess

from raybrew.demo.tokenizer import build_tokenizer

__all__ = ["cli", "losses_of", "make_model", "make_project", "start_cli", "write_experiment"]

_GOOD, _BAD = ("fine", "great", "lovely", "superb"), ("poor", "awful", "dull", "broken")
_REST = tuple(f"{a}{b}" for a in ("ka", "mo", "ti", "re") for b in ("ba", "do", "lu", "ne", "si"))


def make_rows(path: Path, count: int, seed: int) -> None:
    """Sentences whose sentiment is in single words: easy on purpose."""
    random = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            label = int(random.integers(2))
            words = [*random.choice(_REST, random.integers(2, 9)), random.choice((_BAD, _GOOD)[label])]
            random.shuffle(words)
            row = {"text": f"{' '.join(words)} {number}", "label": ("negative", "positive")[label]}
            file.write(json.dumps(row) + "\n")


def make_model(folder: Path, layers: int = 4, hidden: int = 32, seed: int = 0, extra_words: str = "") -> Path:
    """An untrained BERT with its tokenizer; `extra_words` make another vocabulary."""
    words = " ".join((*_GOOD, *_BAD, *_REST, "0 1 2 3 4 5 6 7 8 9", extra_words))
    tokenizer = build_tokenizer([words], folder, max_length=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=2,
                intermediate_size=2 * hidden,
                max_position_embeddings=64,
            )
        ).save_pretrained(folder)
    return folder


def make_project(folder: Path) -> Path:
    """Rows, model and `experiment.yaml` in `folder`; returns the experiment file."""
    make_rows(folder / "train.jsonl", 160, seed=1)
    make_rows(folder / "eval.jsonl", 60, seed=2)
    make_model(folder / "base")
    return write_experiment(folder)


def write_experiment(folder: Path, name: str = "tiny") -> Path:
    """The experiment file of the project in `folder`; paths are absolute, so that it runs from anywhere."""
    values: dict[str, Any] = {
        "name": name,
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
        "task": {"max_length": 32},
        "teacher": {
            "model": str(folder / "base"),
            "finetune": {"epochs": 20, "batch_size": 16, "learning_rate": 2e-3, "threads": 1, "log_steps": 5},
        },
        "student": {"shape": {"layers": 2}},
        "distill": {"temperature": 2.0, "matches": [{"loss": "hidden_mse"}]},
        "train": {
            "epochs": 4,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "threads": 1,
            "log_steps": 5,
            "checkpoint_steps": 3,
        },
        "store": {"storage_path": str(folder / "runs"), "launcher": "local", "rows_per_shard": 64},
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def start_cli(*arguments: object, **environment: str) -> WarmProcess | subprocess.Popen[str]:
    """`raybrew ...` as a process of its own, in a process group of its own; started anew for another environment."""
    if environment.items() <= os.environ.items():
        return WarmProcess([str(argument) for argument in arguments])
    command = [sys.executable, "-m", "raybrew", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def cli(*arguments: object, code: int = 0, timeout: float = 200, **environment: str) -> tuple[str, str]:
    """stdout and stderr of `raybrew ...`, which must exit with `code` and without a traceback."""
    process = start_cli(*arguments, **environment)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err


def losses_of(run: Path) -> list[dict[str, Any]]:
    """Train and eval records without what depends on the clock or on how a run was cut."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = ("time", "samples_per_second", "tokens_per_second", "memory_bytes")
    return [
        {name: value for name, value in record.items() if name not in clock}
        for record in records
        if record["kind"] != "event"
    ]
