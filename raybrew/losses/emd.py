"""BERT-EMD (arXiv:2010.06133): many-to-many layer matching by the earth mover's distance, no mapping to specify.

Each step, in this order:

1. `layer_costs`: loss of every teacher layer against every student layer, a (teacher_layers, student_layers) matrix,
   without gradient.
2. `transport`: the cheapest flow between the layer weights of both sides under these costs, solved on the host after
   one transfer of the matrix.
3. `emd`: sum of flow * cost with gradient, over the few pairs that carry flow (at most teacher + student - 1).
4. optionally `updated_weights`: layers that are cheap to match gain weight for the next step.

The flow is a constant of the loss. It is solved for the tensors given, so a step cut into micro-batches reproduces
the whole batch only if all of them share one flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raybrew.errors import DivergenceError, LossError
from raybrew.losses.features import hidden_mse
from raybrew.losses.masking import full_precision
from raybrew.losses.term import LossTerm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["emd", "layer_costs", "transport", "uniform_weights", "updated_weights"]

PairLoss = Callable[..., LossTerm]

#: Smallest unit cost, as a share of the largest, that `updated_weights` divides by.
_COST_FLOOR = 1e-6

#: Flow below this is rounding of the solver.
_FLOW_FLOOR = 1e-12


def uniform_weights(num_layers: int) -> FloatArray:
    """Equal weights of `num_layers` layers, float64, summing to 1: where BERT-EMD starts."""
    import numpy as np

    return np.full(num_layers, 1.0 / num_layers)


@torch.no_grad()
def layer_costs(
    student_layers: Sequence[Tensor],
    teacher_layers: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    loss: PairLoss = hidden_mse,
) -> Tensor:
    """Mean loss of each pair of layers, (teacher_layers, student_layers) on the device of the layers, no gradient.

    Student layers come projected to the teacher's width where `loss` needs that. The embedding output is no layer
    here: BERT-EMD matches it apart. A mask without real items gives zero costs.
    """
    if not student_layers or not teacher_layers:
        raise LossError(
            f"emd: needs layers on both sides, got {len(student_layers)} of the student and "
            f"{len(teacher_layers)} of the teacher"
        )
    rows = []
    for teacher in teacher_layers:
        terms = [loss(student, teacher, mask) for student in student_layers]
        rows.append(torch.stack([term.sum / term.count.clamp_min(1.0) for term in terms]))
    return torch.stack(rows)


def transport(costs: Tensor | FloatArray, teacher_weights: FloatArray, student_weights: FloatArray) -> FloatArray:
    """The flow (teacher_layers, student_layers) >= 0 of least total cost that has the two weights as its margins.

    A linear program, solved exactly by scipy's HiGHS. Weights are normalised to sum to 1. DivergenceError if a cost is
    NaN or infinite.
    """
    import numpy as np
    from scipy.optimize import linprog

    matrix = costs.detach().double().cpu().numpy() if isinstance(costs, Tensor) else np.asarray(costs, dtype=float)
    if matrix.shape != (len(teacher_weights), len(student_weights)):
        raise LossError(
            f"emd: costs of shape {matrix.shape} do not fit {len(teacher_weights)} teacher weights and "
            f"{len(student_weights)} student weights"
        )
    if not np.isfinite(matrix).all():
        raise DivergenceError("emd: a cost between two layers is NaN or infinite; lower the learning rate")
    num_teacher, num_student = matrix.shape
    # One equation per teacher layer (its row sums to its weight), then one per student layer (columns).
    equations = np.concatenate(
        [
            np.kron(np.eye(num_teacher), np.ones((1, num_student))),
            np.kron(np.ones((1, num_teacher)), np.eye(num_student)),
        ]
    )
    margins = np.concatenate([_normalised("teacher", teacher_weights), _normalised("student", student_weights)])
    # HiGHS works with absolute tolerances, so costs are brought to the order of 1; the best flow stays the same.
    scale = float(np.abs(matrix).max()) or 1.0
    solution = linprog(matrix.ravel() / scale, A_eq=equations, b_eq=margins, bounds=(0, None), method="highs")
    if solution.x is None:
        raise LossError(f"emd: no flow found between the layers: {solution.message}")
    # What the solver's rounding leaves is no flow, and each pair with flow costs a loss with gradient.
    flow: FloatArray = np.where(solution.x > _FLOW_FLOOR, solution.x, 0.0).reshape(matrix.shape)
    return flow


@full_precision
def emd(
    student_layers: Sequence[Tensor],
    teacher_layers: Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    flow: FloatArray,
    loss: PairLoss = hidden_mse,
) -> LossTerm:
    """Sum over pairs of layers of flow * loss; the items and their count are those of `loss`.

    `flow` is (teacher_layers, student_layers), from `transport`. Pairs without flow are not computed. Gradient flows
    to the student layers only.
    """
    if flow.shape != (len(teacher_layers), len(student_layers)):
        raise LossError(
            f"emd: flow of shape {flow.shape} does not fit {len(teacher_layers)} teacher and "
            f"{len(student_layers)} student layers"
        )
    total: Tensor | None = None
    count: Tensor | None = None
    for t, teacher in enumerate(teacher_layers):
        for s, student in enumerate(student_layers):
            share = float(flow[t, s])
            if share > 0.0:
                term = loss(student, teacher, mask)
                total = share * term.sum if total is None else total + share * term.sum
                count = term.count
    if total is None or count is None:
        raise LossError("emd: the flow is zero everywhere; its margins must be weights that sum to 1")
    return LossTerm(total, count)


def updated_weights(
    flow: FloatArray,
    costs: Tensor | FloatArray,
    teacher_weights: FloatArray,
    student_weights: FloatArray,
    *,
    temperature: float | None = None,
) -> tuple[FloatArray, FloatArray]:
    """New (teacher, student) layer weights: BERT-EMD's cost attention (arXiv:2010.06133).

    The unit cost of a layer is what its flow costs divided by its weight; its new weight is proportional to the
    inverse of that. With `temperature` the inverses, relative to their total cost, go through a softmax instead of
    being divided by their sum: the variant of TextBrewer's example, which flattens the weights. Layers of weight zero
    keep it; if all costs are zero nothing changes.
    """
    import numpy as np

    matrix = costs.detach().double().cpu().numpy() if isinstance(costs, Tensor) else np.asarray(costs, dtype=float)
    paid = flow * matrix
    new_weights = []
    for weights, layer_cost in ((teacher_weights, paid.sum(axis=1)), (student_weights, paid.sum(axis=0))):
        active = weights > 0.0
        unit = np.divide(layer_cost, weights, out=np.zeros_like(layer_cost), where=active)
        if not unit.max() > 0.0:
            new_weights.append(weights.copy())
            continue
        # A layer that is matched for nothing would get infinite weight.
        unit = np.maximum(unit, unit.max() * _COST_FLOOR)
        inverse = np.where(active, unit[active].sum() / unit, 0.0)
        score = inverse
        if temperature is not None:
            score = np.where(active, np.exp((inverse - inverse.max()) / temperature), 0.0)
        new_weights.append(score / score.sum())
    return new_weights[0], new_weights[1]


def _normalised(side: str, weights: FloatArray) -> FloatArray:
    import numpy as np

    if not np.isfinite(weights).all() or (weights < 0.0).any() or not weights.sum() > 0.0:
        raise LossError(f"emd: {side} layer weights must be >= 0 and not all zero, got {weights.tolist()}")
    normalised: FloatArray = weights / weights.sum()
    return normalised
