"""Small plain torch models with all that an adaptor may return, batches, distillers. Used by tests of distillers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybrew import DistillationConfig, GeneralDistiller, TrainingConfig

VOCABULARY, CLASSES, LENGTH = 30, 3, 7

#: The last layers of `teacher()` and `student()`.
HIDDEN = {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 12]}


class PlainModel(nn.Module):
    """Embeddings and `layers` blocks of self-attention; heads for examples, tokens, and spans."""

    def __init__(self, layers: int, hidden: int, seed: int, dropout: float = 0.0, heads: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.heads = heads
        self.embeddings = nn.Embedding(VOCABULARY, hidden)
        self.query_key = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(layers))
        self.mixes = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.pooler = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, CLASSES)
        self.tagger = nn.Linear(hidden, CLASSES)
        self.spans = nn.Linear(hidden, 2 * CLASSES)
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 0.5 / max(1, parameter.dim()), generator=generator)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, *, scale: float = 1.0
    ) -> dict[str, Any]:
        states = self.embeddings(input_ids)
        hidden, attention = [states], []
        for query_key, mix in zip(self.query_key, self.mixes, strict=True):
            batch, length, dim = states.shape
            query, key = query_key(states).view(batch, length, self.heads, -1).chunk(2, dim=-1)
            scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) / (dim / self.heads) ** 0.5
            scores = scores + (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
            attention.append(scores)
            mixed = scores.softmax(dim=-1).mean(dim=1) @ states
            states = states + self.dropout(torch.tanh(mix(mixed)))
            hidden.append(states)
        pooled = torch.tanh(self.pooler(states[:, 0]))
        logits = self.classifier(pooled) * scale
        outputs = {"logits": logits, "tags": self.tagger(states), "hidden": hidden, "attention": attention}
        outputs["spans"] = self.spans(states)
        if labels is not None:
            outputs["loss"] = F.cross_entropy(logits, labels)
        return outputs


def batches(count: int, size: int = 4, seed: int = 0) -> list[dict[str, Tensor]]:
    """`count` batches with masks of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        lengths = torch.randint(2, LENGTH + 1, (size, 1), generator=generator)
        found.append(
            {
                "input_ids": torch.randint(1, VOCABULARY, (size, LENGTH), generator=generator),
                "attention_mask": (torch.arange(LENGTH) < lengths).long(),
                "labels": torch.randint(0, CLASSES, (size,), generator=generator),
            }
        )
    return found


def examples_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Logits of examples, layers and their mask, the loss against labels."""
    return {
        "logits": outputs["logits"],
        "hidden": outputs["hidden"],
        "attention": outputs["attention"],
        "inputs_mask": batch["attention_mask"],
        "labels": batch["labels"],
        "losses": outputs["loss"],
    }


def logits_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Logits alone, as a list."""
    return {"logits": [outputs["logits"]]}


def tags_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Logits of tokens with their mask."""
    return {"logits": (outputs["tags"],), "logits_mask": (batch["attention_mask"],)}


def spans_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """Two logits of tokens under one mask."""
    start, end = outputs["spans"].chunk(2, dim=-1)
    return {"logits": (start, end), "logits_mask": batch["attention_mask"]}


def teacher(layers: int = 4, hidden: int = 12, seed: int = 1) -> PlainModel:
    """A wider and deeper model."""
    return PlainModel(layers, hidden, seed)


def student(layers: int = 2, hidden: int = 8, seed: int = 2, dropout: float = 0.0) -> PlainModel:
    """A smaller one."""
    return PlainModel(layers, hidden, seed, dropout)


def settings(folder: Path, **values: Any) -> TrainingConfig:
    """A configuration that writes into `folder/out`."""
    return TrainingConfig(output_dir=folder / "out", **values)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    """Plain steps, in which equal gradients stay equal."""
    return torch.optim.SGD(model.parameters(), lr=lr)


def distiller(
    folder: Path,
    pupil: nn.Module,
    adaptor: Any = examples_adaptor,
    train: dict[str, Any] | None = None,
    seed: int = 0,
    **values: Any,
) -> GeneralDistiller:
    """A GeneralDistiller of `pupil` with one adaptor for both sides."""
    torch.manual_seed(seed)  # projections start from torch's global generator
    return GeneralDistiller(
        settings(folder, **(train or {})), DistillationConfig(**values), teacher(), pupil, adaptor, adaptor
    )


def weights_of(model: nn.Module) -> Tensor:
    """All weights in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def written(folder: Path) -> list[str]:
    """Names of the files in `folder/out`."""
    return sorted(path.name for path in (folder / "out").iterdir())
