"""What an element type costs: error of the gradients that students get from stored values, and their accuracy.

`python -m pytest -s tests/numerics/test_element_types.py` prints the figures that the README gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import raybrew
from raybrew.config.loading import build_experiment
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.losses.attention import attention_mse
from raybrew.losses.features import hidden_mse
from raybrew.losses.logits import kl
from raybrew.losses.relations import relation_kl
from raybrew.store.forms.dense import ELEMENT_TYPES, from_int8, to_int8, torch_dtype

#: Bound of the relative error of a gradient, |g - g32| / |g32|, by element type.
GRADIENT_BOUNDS = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3, "int8": 2e-2}


def stored(values: Tensor, element_type: str, dims: tuple[int, ...]) -> Tensor:
    """`values` after a way through a store of that type; `dims` share a scale."""
    if element_type == "int8":
        kept, scales = to_int8(values, dims)
        shape = [1 if dim in dims or dim - values.dim() in dims else size for dim, size in enumerate(values.shape)]
        return from_int8(kept, scales.reshape(shape))
    return values.to(torch_dtype(element_type))


def draw(*shape: int, seed: int, outliers: bool = False) -> Tensor:
    """Normal values; with `outliers` one dimension is ten times larger, as in hidden states of real models."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if outliers:
        values[..., 3] *= 10
    return values


Loss = Callable[[Tensor, Tensor], Tensor]

CASES: dict[str, tuple[Loss, Tensor, Tensor, tuple[int, ...]]] = {
    "kd": (
        lambda s, t: kl(s, t.float(), temperature=4.0).sum,
        draw(64, 5, seed=0),
        3 * draw(64, 5, seed=1),
        (-1,),
    ),
    "hidden_mse": (
        lambda s, t: hidden_mse(s, t).sum,
        draw(8, 16, 96, seed=2),
        draw(8, 16, 96, seed=3, outliers=True),
        (-1,),
    ),
    "attention_mse": (
        lambda s, t: attention_mse(s, t, torch.ones(8, 16)).sum,
        draw(8, 4, 16, 16, seed=4),
        draw(8, 4, 16, 16, seed=5),
        (1, 3),
    ),
    "relation_kl": (
        lambda s, t: relation_kl(s, t, num_heads=8).sum,
        draw(8, 16, 96, seed=6),
        draw(8, 16, 96, seed=7),
        (-1,),
    ),
}


@pytest.mark.parametrize("element_type", ELEMENT_TYPES)
@pytest.mark.parametrize("name", CASES)
def test_error_of_gradients(name: str, element_type: str) -> None:
    loss, student, teacher, dims = CASES[name]

    def gradient(targets: Tensor) -> Tensor:
        given = student.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(given, targets), given)
        return found

    exact = gradient(teacher)
    error = float((gradient(stored(teacher, element_type, dims)) - exact).norm() / exact.norm())
    print(f"gradient of {name} from {element_type}: {error:.1e}")
    assert error <= GRADIENT_BOUNDS[element_type]
    assert (error > 0) == (element_type != "float32")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher and rows whose label is the sign of the sum of their words' weights: no saturated task."""
    folder, random = tmp_path_factory.mktemp("types"), np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ka", "mo", "ti", "re", "su", "ne") for b in ("ba", "do", "lu", "ne", "si", "ro")]
    weights = random.normal(size=len(words))
    for name, count in (("train", 600), ("eval", 400)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                chosen = random.choice(len(words), random.integers(4, 12))
                text = f"{' '.join(words[place] for place in chosen)} {number}"
                file.write(json.dumps({"text": text, "label": int(weights[chosen].sum() > 0)}) + "\n")
    tokenizer = build_tokenizer([" ".join(words)], folder / "base", max_length=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=96,
                max_position_embeddings=64,
            )
        ).save_pretrained(folder / "base")
    raybrew.finetune(experiment(folder, "float32"))
    return folder


def experiment(folder: Path, element_type: str) -> Any:
    train = {"batch_size": 32, "learning_rate": 2e-3, "threads": 1, "launcher": "local", "device": "cpu"}
    return build_experiment(
        {
            "name": element_type,
            "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
            "teacher": {"model": str(folder / "base"), "finetune": train | {"epochs": 6}, "device": "cpu"},
            "student": {"shape": {"layers": 1, "hidden": 24, "heads": 4}},
            "distill": {
                "temperature": 2.0,
                "matches": [
                    {"loss": "hidden_mse"},
                    {"loss": "attention_mse"},
                    {"loss": "relation_kl", "relations": ["value"]},
                ],
            },
            "train": train | {"epochs": 5},
            "store": {"storage_path": str(folder), "launcher": "local", "element_type": element_type},
        }
    )


@pytest.mark.slow
def test_accuracy_of_students_does_not_depend_on_the_type(project: Path) -> None:
    accuracies: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    teacher: dict[str, Any] = {}
    for element_type in ELEMENT_TYPES:
        one = experiment(project, element_type)
        # One teacher for all: the finetune run belongs to the first name.
        one = one.model_copy(
            update={
                "teacher": one.teacher.model_copy(
                    update={"model": str(next((project / "float32").glob("finetune*")) / "student"), "finetune": None}
                )
            }
        )
        result = raybrew.distill(one, report=False)
        accuracies[element_type] = result.metrics["accuracy"]
        losses[element_type] = [
            record["loss"] for line in (result.path / "metrics.jsonl").open() if "loss" in (record := json.loads(line))
        ]
        teacher = result.summary["teacher"]["metrics"]
        assert result.summary["distill"]["source"] == "store"
    print(f"accuracy of students on 400 rows: {accuracies}, of the teacher {teacher['accuracy']}")
    assert 0.8 < accuracies["float32"] < 1.0  # learnt, and not saturated
    assert len({tuple(found) for found in losses.values()}) == len(ELEMENT_TYPES)  # each was trained from its own type
    for element_type, accuracy in accuracies.items():
        assert losses[element_type] == pytest.approx(losses["float32"], rel=0.02)
        assert abs(accuracy - accuracies["float32"]) <= 0.02, element_type
