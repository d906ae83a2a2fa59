"""The pooled output of a classifier: the vector of a row that its last linear layer reads.

For BERT that is the output of the pooler, for RoBERTa and ELECTRA that of the head's dense layer after its activation,
for DistilBERT that of the pre-classifier. It is taken before the dropout that stands in front of the last layer: what a
student is compared with in training must not be full of zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from raybrew.errors import ModelError
from raybrew.signals import POOLED, Signal

__all__ = ["pooled_output"]


@contextlib.contextmanager
def pooled_output(model: nn.Module, request: Collection[Signal]) -> Iterator[dict[Signal, Tensor]]:
    """Collects the pooled output, if `request` has it, in the one forward pass of `model` that runs inside.

    The dict is filled when the block is left: (batch, dim), with gradient where that is recorded. ModelError for models
    without a last layer that reads one vector per row.
    """
    result: dict[Signal, Tensor] = {}
    if POOLED not in request:
        yield result
        return
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    name = type(model).__name__
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == classes]
    if not heads:
        raise ModelError(f"pooled was asked for, but {name} has no linear layer that gives its classes")
    read: list[Tensor] = []
    dropped: list[tuple[Tensor, Tensor]] = []

    def keep_dropout(module: nn.Module, inputs: Any, output: Tensor) -> None:
        dropped[:] = [(inputs[0], output)]

    def keep_input(module: nn.Module, inputs: Any) -> None:
        given = inputs[0]
        # The last call counts: a layer further down may happen to have the width of the classes.
        read[:] = [dropped[0][0] if dropped and dropped[0][1] is given else given]

    with contextlib.ExitStack() as hooks:
        for head in heads:
            hooks.callback(head.register_forward_pre_hook(keep_input).remove)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                hooks.callback(module.register_forward_hook(keep_dropout).remove)
        yield result
    if len(read) != 1 or read[0].dim() != 2:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in read) or "nothing"
        raise ModelError(
            f"pooled was asked for, but the last layer of {name} reads {shapes} instead of one vector per row; a model "
            "for sequence classification has one"
        )
    result[POOLED] = read[0]
