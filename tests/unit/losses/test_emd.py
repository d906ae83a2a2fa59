"""BERT-EMD: the flow against assignment problems, the loss and the weight update against loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from raybrew.errors import DivergenceError, LossError
from raybrew.losses.emd import emd, layer_costs, transport, uniform_weights, updated_weights
from raybrew.losses.features import cos, hidden_mse


def layers(num_layers: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, 5, generator=generator) for _ in range(num_layers)]


def mask() -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_flow_is_the_cheapest_assignment(num_student: int, copies: int, seed: int) -> None:
    # With `copies` teacher layers to every student layer, the flow is an assignment of teachers to copied students.
    costs = np.random.default_rng(seed).random((num_student * copies, num_student)) * 10.0 ** (seed % 9 - 4)
    flow = transport(costs, uniform_weights(num_student * copies), uniform_weights(num_student))
    rows, columns = linear_sum_assignment(np.repeat(costs, copies, axis=1))
    cheapest = np.repeat(costs, copies, axis=1)[rows, columns].mean()
    assert (flow * costs).sum() == pytest.approx(cheapest, rel=1e-6)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_flow_has_the_weights_as_margins(num_teacher: int, num_student: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    teacher, student = random.random(num_teacher) + 0.01, random.random(num_student) + 0.01
    flow = transport(random.random((num_teacher, num_student)), teacher, student)
    assert (flow >= 0).all()
    assert (flow > 0).sum() <= num_teacher + num_student - 1
    np.testing.assert_allclose(flow.sum(axis=1), teacher / teacher.sum(), atol=1e-9)
    np.testing.assert_allclose(flow.sum(axis=0), student / student.sum(), atol=1e-9)


def test_equal_layers_find_each_other() -> None:
    teachers = layers(3, 1)
    students = [teachers[2], teachers[0], teachers[1]]
    costs = layer_costs(students, teachers, mask())
    flow = transport(costs, uniform_weights(3), uniform_weights(3))
    np.testing.assert_allclose(flow * 3, [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-9)
    assert float(emd(students, teachers, mask(), flow=flow).sum) == 0.0


@pytest.mark.parametrize("loss", [hidden_mse, cos])
def test_costs_and_loss_against_loops(loss: Callable) -> None:
    students = [student.requires_grad_() for student in layers(2, 1)]
    teachers = layers(3, 2)
    costs = layer_costs(students, teachers, mask(), loss=loss)
    assert costs.shape == (3, 2)
    assert not costs.requires_grad
    flow = np.array([[0.25, 0.0], [0.0, 0.5], [0.25, 0.0]])
    term = emd(students, teachers, mask(), flow=flow, loss=loss)
    expected = torch.zeros(())
    for t in range(3):
        for s in range(2):
            pair = loss(students[s], teachers[t], mask())
            torch.testing.assert_close(costs[t, s], (pair.sum / pair.count).detach())
            expected = expected + flow[t, s] * pair.sum / pair.count
    torch.testing.assert_close(term.sum / term.count, expected)
    assert float(term.count) == 7.0
    ours = torch.autograd.grad(term.sum / term.count, students, retain_graph=True)
    theirs = torch.autograd.grad(expected, students)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_costs_of_an_empty_mask_are_zero() -> None:
    costs = layer_costs(layers(2, 1), layers(3, 2), torch.zeros(3, 4))
    assert not costs.any()
    assert transport(costs, uniform_weights(3), uniform_weights(2)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("temperature", [None, 1.0, 5.0])
def test_weight_update_against_a_loop(temperature: float | None) -> None:
    random = np.random.default_rng(3)
    costs = random.random((4, 2)) + 0.1
    teacher, student = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.35, 0.65])
    flow = transport(costs, teacher, student)
    new_teacher, new_student = updated_weights(flow, torch.tensor(costs), teacher, student, temperature=temperature)

    def loop(weights: list[float], paid: list[float]) -> list[float]:
        unit = [cost / weight for cost, weight in zip(paid, weights, strict=True)]
        inverse = [sum(unit) / value for value in unit]
        score = inverse if temperature is None else [math.exp(value / temperature) for value in inverse]
        return [value / sum(score) for value in score]

    paid_by_teacher = [sum(flow[t][s] * costs[t][s] for s in range(2)) for t in range(4)]
    paid_by_student = [sum(flow[t][s] * costs[t][s] for t in range(4)) for s in range(2)]
    np.testing.assert_allclose(new_teacher, loop(teacher.tolist(), paid_by_teacher), rtol=1e-9)
    np.testing.assert_allclose(new_student, loop(student.tolist(), paid_by_student), rtol=1e-9)


def test_weight_update_prefers_cheap_layers_and_stays_finite() -> None:
    flow = np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]])
    costs = np.array([[1.0, 9.0], [9.0, 4.0], [9.0, 9.0]])
    teacher, student = np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.5])
    new_teacher, new_student = updated_weights(flow, costs, teacher, student)
    np.testing.assert_allclose(new_teacher, [0.8, 0.2, 0.0])
    np.testing.assert_allclose(new_student, [0.8, 0.2])
    for temperature in (None, 1e-3):
        for free in (np.array([[0.0, 9.0], [9.0, 4.0], [9.0, 9.0]]), np.zeros((3, 2))):
            for weights in updated_weights(flow, free, teacher, student, temperature=temperature):
                assert np.isfinite(weights).all()
                assert weights.sum() == pytest.approx(1.0)


def test_inputs_of_the_update_are_left_as_they_were() -> None:
    weights = uniform_weights(2)
    updated_weights(np.eye(2) / 2, np.array([[1.0, 2.0], [3.0, 4.0]]), weights, weights)
    assert weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: transport(np.ones((2, 3)), np.ones(3), np.ones(3)), LossError, ["(2, 3)", "3 teacher"]),
        (lambda: transport(np.full((1, 1), np.nan), np.ones(1), np.ones(1)), DivergenceError, ["NaN"]),
        (lambda: transport(np.ones((1, 2)), np.ones(1), np.array([1.0, -1.0])), LossError, ["student", "-1.0"]),
        (lambda: emd(layers(2, 1), layers(2, 2), flow=np.ones((1, 2))), LossError, ["(1, 2)", "2 teacher"]),
        (lambda: emd(layers(1, 1), layers(1, 2), flow=np.zeros((1, 1))), LossError, ["zero everywhere"]),
        (lambda: layer_costs([], layers(1, 1)), LossError, ["0 of the student"]),
    ],
)
def test_errors_name_what_was_given(call: Callable[[], object], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
