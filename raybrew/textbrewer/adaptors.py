"""What adaptors return, checked and in one form: lists of tensors, and of layers only those that are compared."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raybrew.config.problems import near_match
from raybrew.errors import LossError
from raybrew.textbrewer.presets import ADAPTOR_KEYS, FEATURES

__all__ = ["Adapted", "Adaptor", "Wanted", "adapt", "teacher_name", "warn_of_unknown_keys"]

log = logging.getLogger(__name__)

#: adaptor(batch, model_outputs) -> dict of ADAPTOR_KEYS.
Adaptor = Callable[[Any, Any], Mapping[str, Any]]

#: (feature, layer) -> name of the match that compares it.
Wanted = Mapping[tuple[str, int], str]


@dataclasses.dataclass(frozen=True)
class Adapted:
    """One model's side of a micro-batch."""

    logits: tuple[Tensor, ...] = ()
    logits_masks: tuple[Tensor, ...] = ()  #: none, one for all logits, or one for each
    labels: tuple[Tensor, ...] = ()
    losses: tuple[Tensor, ...] = ()
    inputs_mask: Tensor | None = None
    layers: Mapping[tuple[str, int], Tensor] = dataclasses.field(default_factory=dict)
    taps: tuple[Tensor, ...] = ()  #: outputs of the modules in custom matches
    unknown: tuple[str, ...] = ()  #: keys that mean nothing here

    @property
    def is_masked(self) -> bool:
        """Whether counts depend on values: on masks or labels."""
        return bool(self.logits_masks or self.labels) or self.inputs_mask is not None

    def mask_of(self, head: int) -> Tensor | None:
        """The mask (batch, length) of `logits[head]`; None if there is none or it has no effect: logits are 2-D."""
        if not self.logits_masks or self.logits[head].dim() < 3:
            return None
        return self.logits_masks[0 if len(self.logits_masks) == 1 else head]

    def to(self, device: torch.device | str) -> Adapted:
        """The same on `device`."""
        ahead = torch.device(device).type != "cpu"  # a copy to the host must have arrived before it is read

        def moved(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(device, non_blocking=ahead) for tensor in tensors)

        return dataclasses.replace(
            self,
            logits=moved(self.logits),
            logits_masks=moved(self.logits_masks),
            labels=moved(self.labels),
            losses=(),  # a teacher's losses are not used
            inputs_mask=None if self.inputs_mask is None else self.inputs_mask.to(device, non_blocking=ahead),
            layers={key: layer.to(device, non_blocking=ahead) for key, layer in self.layers.items()},
            taps=moved(self.taps),
        )


def adapt(name: str, said: Any, wanted: Wanted) -> Adapted:
    """`said`, which the adaptor called `name` returned, with the layers that are `wanted`.

    LossError names the adaptor and the value of the wrong kind, or the match whose layer is not there. Features that no
    match compares are not looked at: models return anything there that they were not asked for.
    """
    if not isinstance(said, Mapping):
        raise LossError(f"{name}: expected a dict, the adaptor returned {type(said).__name__}")
    compared = {feature for feature, _ in wanted}
    lists = {key: _tensors(name, key, said.get(key)) for key in ADAPTOR_KEYS if key not in FEATURES or key in compared}
    logits, masks = lists["logits"], lists["logits_mask"]
    if logits and len(masks) not in (0, 1, len(logits)):
        raise LossError(f"{name}: {len(logits)} logits and {len(masks)} logits_mask; give one mask, or one for each")
    for index, tensor in enumerate(logits):
        mask = masks[0 if len(masks) == 1 else index] if masks else None
        if tensor.dim() == 3 and mask is not None and mask.shape != tensor.shape[:2]:
            raise LossError(
                f"{name}: logits_mask {tuple(mask.shape)} does not fit logits {tuple(tensor.shape)}; "
                f"expected {tuple(tensor.shape[:2])}"
            )
    if len(lists["inputs_mask"]) > 1:
        raise LossError(f"{name}: expected one inputs_mask, the adaptor returned {len(lists['inputs_mask'])}")
    layers = {}
    for (feature, layer), match in wanted.items():
        found = lists[feature]
        if not -len(found) <= layer < len(found):
            raise LossError(
                f"{match}: layer {layer} does not exist: {name} returned {len(found)} {feature} layers"
                + (
                    f", 0 to {len(found) - 1}"
                    if found
                    else f"; add the key {feature!r} to what it returns: {', '.join(map(str, said))}"
                )
            )
        layers[feature, layer] = found[layer]
    return Adapted(
        logits=logits,
        logits_masks=masks,
        labels=lists["labels"],
        losses=lists["losses"],
        inputs_mask=lists["inputs_mask"][0] if lists["inputs_mask"] else None,
        layers=layers,
        unknown=tuple(str(key) for key in said if key not in ADAPTOR_KEYS),
    )


def warn_of_unknown_keys(name: str, side: Adapted) -> None:
    """A warning for each key of an adaptor that nothing reads; TextBrewer ignores these without a word."""
    for key in side.unknown:
        near = near_match(key, ADAPTOR_KEYS)
        log.warning("%s: unknown key %r is ignored; known: %s%s", name, key, ", ".join(ADAPTOR_KEYS), near)


def teacher_name(index: int, count: int) -> str:
    """What messages call the adaptor of a teacher."""
    return "adaptor_T" if count == 1 else f"adaptor_T of teacher {index}"


def _tensors(name: str, key: str, value: Any) -> tuple[Tensor, ...]:
    if value is None:
        return ()
    values = (value,) if isinstance(value, Tensor) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(item, Tensor) for item in values):
        raise LossError(f"{name}: {key!r} must be a tensor or a list of tensors, got {_describe(value)}")
    return tuple(values)


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {', '.join(sorted({type(item).__name__ for item in value}))}"
    return type(value).__name__
