"""The smallest distillation there is: a two-layer BERT after a four-layer one, on random tokens, without downloads.

python experiments/random_tokens/distill.py [FOLDER]

It shows how TextBrewer's Python API is put together; `make demo` and the experiment files show what it is worth.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from raybrew import DistillationConfig, GeneralDistiller, TrainingConfig
from raybrew.models.inspection import display_parameters

__all__ = ["disagreement", "main"]

VOCABULARY, LENGTH, ROWS, CLASSES = 500, 16, 512, 4


def bert(layers: int) -> BertForSequenceClassification:
    """A small BERT with random weights that shows its hidden layers."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=CLASSES,
        output_hidden_states=True,
        initializer_range=0.1,  # far enough from nothing that the teacher has an opinion on its rows
    )
    return BertForSequenceClassification(config)


def adaptor(batch: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    """What the distiller compares, out of a model's outputs."""
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}


def disagreement(student: torch.nn.Module, teacher: torch.nn.Module, rows: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence of the student's classes from the teacher's, in nats."""
    with torch.no_grad():
        ours, theirs = (model.eval()(rows).logits.log_softmax(-1) for model in (student, teacher))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def main(folder: Path) -> tuple[float, float]:
    """Distils; the disagreement with the teacher on other rows before and after."""
    torch.manual_seed(0)
    teacher, student = bert(4), bert(2)
    print(display_parameters(student, max_level=2)[0])
    rows, others = torch.randint(0, VOCABULARY, (2, ROWS, LENGTH))
    batches = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], 32, shuffle=True)
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=str(folder), log_dir=None, device="cpu"),
        DistillationConfig(
            temperature=4,
            intermediate_matches=[
                {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
                {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1},
            ],
        ),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    before = disagreement(student, teacher, others)
    with distiller:
        distiller.train(torch.optim.AdamW(student.parameters(), lr=3e-3), batches, num_epochs=15)
    return before, disagreement(student, teacher, others)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        first, last = main(Path(sys.argv[1] if len(sys.argv) > 1 else made))
    print(f"Divergence from the teacher on rows that training did not show: {first:.3f} before, {last:.3f} after")
