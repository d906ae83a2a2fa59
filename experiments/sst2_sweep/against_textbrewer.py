"""Milliseconds per step of TextBrewer on the models and batches of the sweep, and what its trials would take in a row.

    python experiments/sst2_sweep/against_textbrewer.py TEACHER ROWS.jsonl.gz --steps 8

TEACHER is the folder of the fine-tuned teacher. Temperature does not change the cost of a step, so each shape and match
set is timed once. TextBrewer runs the teacher in every step; rows are padded to the longest of a batch, to the sweep's
max_length, and to 128 as in TextBrewer's own examples.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import logging
import random
import statistics
import time
from typing import Any

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import AutoTokenizer

from raybrew.config import ShapeConfig, StudentConfig
from raybrew.models.loading import ModelSource, load_model
from raybrew.models.students import build_student

MAX_LENGTH, BATCH, TEMPERATURES = 64, 32, 3
#: Name of a padding -> length of every row, None for the longest of the batch.
PADDINGS = {"to the longest": None, "to 64": 64, "to 128": 128}


def batches(texts: list[str], tokenizer: Any, length: int | None, count: int) -> list[dict[str, torch.Tensor]]:
    """`count` batches in random order, cut at MAX_LENGTH and padded to `length`."""
    found = []
    for index in range(count):
        chosen = texts[index * BATCH : (index + 1) * BATCH]
        encoded = tokenizer(chosen, truncation=True, max_length=MAX_LENGTH)
        padding = "max_length" if length else "longest"
        found.append(dict(tokenizer.pad(encoded, padding=padding, max_length=length, return_tensors="pt")))
    return found


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """What TextBrewer reads from the outputs of either model."""
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}


def pace(teacher: Any, student: Any, matches: list[dict[str, Any]], data: list[dict[str, torch.Tensor]]) -> float:
    """Median milliseconds per step; the first two steps are left out."""
    config = DistillationConfig(temperature=4, intermediate_matches=matches)
    training = TrainingConfig(log_dir=None, output_dir="/tmp/textbrewer-pace", device="cpu")
    distiller = GeneralDistiller(training, config, teacher, student, adaptor, adaptor)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    marks: list[float] = []

    class Timed(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            for batch in list.__iter__(self):
                marks.append(time.perf_counter())
                yield batch
            marks.append(time.perf_counter())

    with distiller:
        distiller.train(optimizer, Timed(data), num_epochs=1, callback=None)
    return 1000 * statistics.median(b - a for a, b in itertools.pairwise(marks[2:]))


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("teacher")
    parser.add_argument("rows")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--trial-steps", type=int, default=400)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with gzip.open(arguments.rows, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    random.Random(0).shuffle(texts)
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    source = ModelSource(arguments.teacher)
    found: dict[str, Any] = {}
    for padding, length in PADDINGS.items():
        data = batches(texts, tokenizer, length, arguments.steps + 2)
        for layers in (3, 2):
            for matched in (False, True):
                teacher = load_model(source, "classification")
                shape = StudentConfig(shape=ShapeConfig(layers=layers))
                student = build_student(shape, source, "classification", ("negative", "positive"), 0).model
                for model in (teacher, student):
                    model.config.output_hidden_states = True
                pairs = [(round(i * 6 / layers), i) for i in range(layers + 1)] if matched else []
                matches = [
                    {"layer_T": t, "layer_S": s, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
                    for t, s in pairs
                ]
                name = f"{padding}, {layers} layers, {'hidden_mse' if matched else 'logits only'}"
                found[name] = round(pace(teacher, student, matches, data), 1)
    threads = torch.get_num_threads()
    total = {
        padding: sum(
            TEMPERATURES * arguments.trial_steps * ms for name, ms in found.items() if name.startswith(f"{padding},")
        )
        / 1000
        for padding in PADDINGS
    }
    print(json.dumps({"threads": threads, "ms_per_step": found, "seconds_of_12_trials": total}, indent=2))


if __name__ == "__main__":
    main()
