"""Compiled models: one compilation for each shape that the loader makes, none left out, weights shared."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from raybrew.data.sampler import padded_length
from raybrew.models.forward import compiled


def test_each_shape_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations: list[tuple[int, ...]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(next(tuple(value.shape) for value in inputs if value.dtype == torch.int64))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.Embedding(10, 4)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.embeddings(input_ids).sum(dim=1)

    model = Model()
    run = compiled(model)
    lengths = sorted({padded_length(length, bounded=True) for length in range(1, 1025)})
    for _ in range(2):
        for length in lengths:
            run(input_ids=torch.ones(2, length, dtype=torch.int64)).sum().backward()
    assert compilations == [(2, length) for length in lengths]
    assert len(lengths) == 20
    assert model.embeddings.weight.grad is not None
    assert list(model.state_dict()) == ["embeddings.weight"]
