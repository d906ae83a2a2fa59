"""Measuring how long models take: in turn, by a clock that the test holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from raybrew.errors import ModelError
from raybrew.models import latency
from raybrew.models.latency import Timings, measure_in_turn

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
CPU = torch.device("cpu")


def make_bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=24, **SIZES))


@pytest.fixture
def bert() -> BertForSequenceClassification:
    return make_bert()


class Lab:
    """Stands in for the module `time`, and sees every forward pass: (name, shape, training, gradients)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str, int], float]) -> None:
        self.now = 100.0
        self.seconds = seconds
        self.passes: list[tuple[str, tuple[int, ...], bool, bool]] = []
        self.tokens: set[int] = set()
        monkeypatch.setattr(latency, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def watch(self, name: str, model: nn.Module) -> nn.Module:
        def before(module: nn.Module, arguments: Any, inputs: dict[str, Tensor]) -> None:
            assert bool(inputs["attention_mask"].all())
            self.tokens |= set(inputs["input_ids"].flatten().tolist())
            shape = tuple(inputs["input_ids"].shape)
            self.passes.append((name, shape, module.training, torch.is_grad_enabled()))
            self.now += self.seconds(name, shape[0])

        model.register_forward_pre_hook(before, with_kwargs=True)
        return model

    def turns(self) -> list[tuple[str, int]]:
        """Name and batch size of the passes, repeated ones once."""
        found: list[tuple[str, int]] = []
        for name, shape, *_ in self.passes:
            if not found or found[-1] != (name, shape[0]):
                found.append((name, shape[0]))
        return found


def given(**models: nn.Module) -> dict[str, Callable[[], list[nn.Module]]]:
    return {name: (lambda model=model: [model]) for name, model in models.items()}  # type: ignore[misc]


def test_equal_models_take_equal_time_on_a_machine_that_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine gets 1 % slower with every pass: one after the other, the second would look much slower."""
    lab = Lab(monkeypatch, lambda _, size: 0.001 * size * 1.01 ** len(lab.passes))
    models = given(student=lab.watch("student", make_bert()), teacher=lab.watch("teacher", make_bert()))
    found = measure_in_turn(models, length=7, device=CPU).milliseconds
    for batch in ("batch_1", "batch_32"):
        assert found["teacher"][batch] / found["student"][batch] == pytest.approx(1.0, abs=0.2)
    assert lab.turns() == [(name, size) for _ in range(5) for name in ("student", "teacher") for size in (1, 32)]


def test_milliseconds_are_per_example_and_without_the_warm_up(monkeypatch: pytest.MonkeyPatch, bert: nn.Module) -> None:
    cold = {1: iter([9.0]), 4: iter([9.0])}
    lab = Lab(monkeypatch, lambda _, size: next(cold[size], 0.02))
    found = measure_in_turn(given(only=lab.watch("only", bert)), length=7, device=CPU, batch_sizes=(1, 4))
    assert found.milliseconds == {"only": {"batch_1": 20.0, "batch_4": 5.0}}
    assert {(shape, training, grad) for _, shape, training, grad in lab.passes} == {
        ((1, 7), False, False),
        ((4, 7), False, False),
    }
    assert lab.tokens == {39}


def test_several_modules_of_one_model_take_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(monkeypatch, lambda name, size: {"a": 0.01, "b": 0.03}[name])
    both = [lab.watch("a", make_bert()), lab.watch("b", make_bert())]
    found = measure_in_turn({"average": lambda: both}, length=7, device=CPU, batch_sizes=(1,))
    assert found.milliseconds == {"average": {"batch_1": 40.0}}


def test_slow_models_have_fewer_rounds_and_passes(monkeypatch: pytest.MonkeyPatch, bert: nn.Module) -> None:
    lab = Lab(monkeypatch, lambda *_: 4.0)
    found = measure_in_turn(given(slow=lab.watch("slow", bert)), length=5, device=CPU, batch_sizes=(1,))
    assert found.rounds == 3
    assert len(lab.passes) == 1 + 3, "one to warm up"


def test_conditions_say_where_and_how(bert: nn.Module) -> None:
    entered: list[bool] = []

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        entered.append(True)
        yield

    one, two = (
        measure_in_turn(given(only=bert), length=5, device=CPU, precision="bf16", autocast=autocast) for _ in range(2)
    )
    assert isinstance(one, Timings)
    assert one.device.startswith("cpu (")
    assert (one.precision, one.threads, one.tokens) == ("bf16", torch.get_num_threads(), 5)
    assert entered
    assert one.round != two.round
    assert set(one.conditions) == {"device", "machine", "precision", "threads", "tokens", "rounds", "round"}


def test_modes_are_restored_and_nothing_is_drawn(bert: nn.Module) -> None:
    bert.train()
    before = torch.get_rng_state()
    found = measure_in_turn(given(only=bert), length=5, device=CPU)
    assert list(found.milliseconds["only"]) == ["batch_1", "batch_32"]
    assert all(value > 0 for value in found.milliseconds["only"].values())
    assert bert.training
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_is_no_token(monkeypatch: pytest.MonkeyPatch, bert: BertForSequenceClassification) -> None:
    lab = Lab(monkeypatch, lambda *_: 0.01)
    bert.config.pad_token_id = 39
    measure_in_turn(given(only=lab.watch("only", bert)), length=5, device=CPU, batch_sizes=(1,))
    assert lab.tokens == {38}


def test_too_many_tokens_are_named(bert: nn.Module) -> None:
    bert.train()
    with pytest.raises(ModelError, match="1 x 25 tokens"):
        measure_in_turn(given(only=bert), length=25, device=CPU)
    assert bert.training


def test_models_that_would_fill_the_memory_are_built_for_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(name: str) -> list[nn.Module]:
        built.append(name)
        return [make_bert()]

    size = 4 * sum(parameter.numel() for parameter in make_bert().parameters())
    monkeypatch.setattr(latency, "_KEPT_BYTES", int(1.5 * size))
    models = {name: (lambda name=name: build(name)) for name in ("a", "b")}  # type: ignore[misc]
    found = measure_in_turn(models, length=5, device=CPU, batch_sizes=(1,))
    assert found.rounds == 5
    assert (built.count("a"), built.count("b")) == (1, 5)
