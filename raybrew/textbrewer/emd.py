"""`EMDDistiller`: BERT-EMD (arXiv:2010.06133), all student layers against all teacher layers, no mapping to specify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from raybrew.config.problems import near_match
from raybrew.distillers.emd import LayerWeights
from raybrew.errors import ConfigError
from raybrew.losses.features import hidden_mse
from raybrew.losses.term import LossTerm
from raybrew.textbrewer.adaptors import Adapted, Adaptor
from raybrew.textbrewer.batches import StudentInputs
from raybrew.textbrewer.configs import DistillationConfig, TrainingConfig
from raybrew.textbrewer.distillers import BasicDistiller
from raybrew.textbrewer.functions import projection_of
from raybrew.textbrewer.terms import ExtraTerm, TermFactory

__all__ = ["EMDDistiller"]

_KEYS = ("layer_num_S", "layer_num_T", "feature", "loss", "weight", "proj", "update_weights", "temperature")


class _Layers(LayerWeights):
    """Layer weights and the student's projections; the embeddings are matched apart, so they have no weight."""

    def __init__(
        self, num_student: int, num_teacher: int, proj: Sequence[Any] | None, update: bool, temperature: float | None
    ) -> None:
        super().__init__(num_student - 1, num_teacher - 1, update, temperature)
        projections = [projection_of(proj, "emd.proj") for _ in range(num_student)] if proj else []
        self.projections = nn.ModuleList(projections)

    def project(self, index: int, layer: Tensor) -> Tensor:
        projected: Tensor = self.projections[index](layer) if len(self.projections) else layer
        return projected


class EMDDistiller(BasicDistiller):
    """Distils logits, and hidden layers by the earth mover's distance between all of both models.

    `emd` is a dict: `layer_num_S` and `layer_num_T` (layers with the embeddings), `feature` ("hidden"), `loss`
    ("hidden_mse"), `weight`, and perhaps `proj` = [kind, student dim, teacher dim], one map for each layer. The flow is
    solved exactly on the host, after one transfer of costs and weights for each micro-batch. After each, layers that
    are cheap to match gain weight, unless `update_weights` is False, which is how TextBrewer's example runs; with
    `temperature` the new weights go through a softmax.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: nn.Module,
        model_S: nn.Module,
        adaptor_T: Adaptor,
        adaptor_S: Adaptor,
        emd: Mapping[str, Any],
    ) -> None:
        for key in emd:
            if key not in _KEYS:
                raise ConfigError(f"emd: unknown key {key!r}; allowed: {', '.join(_KEYS)}{near_match(key, _KEYS)}")
        missing = [key for key in _KEYS[:5] if key not in emd]
        if missing:
            raise ConfigError(f"emd: {', '.join(missing)} required, but not given")
        if emd["feature"] != "hidden" or emd["loss"] != "hidden_mse":
            raise ConfigError("emd: feature must be 'hidden' and loss 'hidden_mse'")
        if min(emd["layer_num_S"], emd["layer_num_T"]) < 2:
            raise ConfigError("emd: layer_num_S and layer_num_T count the embeddings and at least one layer")
        self.emd = dict(emd)
        self._layers = _Layers(
            emd["layer_num_S"],
            emd["layer_num_T"],
            emd.get("proj"),
            emd.get("update_weights", True),
            emd.get("temperature"),
        )
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)

    def _factory(self) -> TermFactory:
        student = [("hidden", layer) for layer in range(self.emd["layer_num_S"])]
        teacher = [("hidden", layer) for layer in range(self.emd["layer_num_T"])]
        weight = self.emd["weight"]
        extra = (
            ExtraTerm("emd", "unweighted_hidden_hidden_mse_emd", weight, self._distance, student, teacher),
            ExtraTerm("embeddings", "unweighted_embedding_hidden_mse", weight, self._embeddings, (), ()),
        )
        return TermFactory(self.d_config, (), (), (), self._ensemble, False, extra)

    def _more_modules(self) -> Mapping[str, nn.Module]:
        return {"emd": self._layers}

    def _more_groups(self) -> Sequence[tuple[nn.Module, Mapping[str, Any]]]:
        return [(self._layers.projections, {})]

    def _embeddings(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        projected = self._layers.project(0, student.layers["hidden", 0])
        return hidden_mse(projected, teachers[0].layers["hidden", 0], student.inputs_mask)

    def _distance(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        layers, mask = self._layers, student.inputs_mask
        given = [layers.project(i, student.layers["hidden", i]) for i in range(1, self.emd["layer_num_S"])]
        wanted = [teachers[0].layers["hidden", i] for i in range(1, self.emd["layer_num_T"])]
        return layers.distance(given, wanted, mask)
