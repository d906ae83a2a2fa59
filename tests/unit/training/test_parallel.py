"""Training where devices, drivers and models are not as usual: silent drivers, dying scales, unused parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from raybrew.config.distill import DistillConfig
from raybrew.distillers.objective import build_objective
from raybrew.errors import DivergenceError
from raybrew.models.forward import compiled, forward
from raybrew.signals import LOGITS
from raybrew.training.context import LocalContext
from raybrew.training.encoded import Trainee
from raybrew.training.optim import Precision, clip_gradients
from raybrew.training.parallel import full_state, is_sharded, leaves_unused, replicate, shard
from raybrew.training.window import Window, _machine

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


class NVMLError(Exception):
    """As that of nvidia-ml-py, which is no RuntimeError."""


@pytest.mark.parametrize("error", [NVMLError("Not Supported"), ModuleNotFoundError("pynvml"), RuntimeError("driver")])
def test_a_driver_that_reports_no_utilisation_ends_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unsupported(device: Any = None) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", unsupported)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    assert _machine(torch.device("cuda", 0)) == {"memory_bytes": 7}


class _Spoilt(torch.autograd.Function):
    """Finite forward, no finite gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("inf")


def _fp16_steps(num_steps: int, spoilt: Callable[[int], bool]) -> tuple[int, nn.Linear]:
    """Steps taken without an error by a small model whose gradients overflow in the steps that are `spoilt`."""
    torch.manual_seed(0)
    precision, context, model = Precision("fp16", CPU), LocalContext(CPU), nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    window = Window(("kd",), CPU)
    for step in range(num_steps):
        outputs = model(torch.ones(2, 4))
        loss = (_Spoilt.apply(outputs) if spoilt(step) else outputs).square().sum()
        precision.scaler.scale(loss).backward()
        precision.scaler.unscale_(optimizer)
        norm = clip_gradients(list(model.parameters()), 1.0)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad()
        one = torch.ones(1, dtype=torch.float64)
        window.add(step + 1, loss.detach().view(1), one, one, None, (2, 8, 8), norm)
        window.check(context, precision.scale, lambda number: ["ab"])
    return num_steps, model


def test_fp16_without_finite_gradients_at_any_scale_has_diverged() -> None:
    with pytest.raises(DivergenceError, match="fp16") as caught:
        _fp16_steps(200, lambda step: True)
    assert 17 <= caught.value.step <= 20, "2**16 is halved 17 times before it is below 1"
    assert caught.value.example_ids == ("ab",)
    steps, _ = _fp16_steps(60, lambda step: step < 12 or step % 20 == 0)
    assert steps == 60, "overflows that a smaller scale ends are part of finding it"


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _models() -> dict[str, Callable[[], Any]]:
    xlnet = XLNetConfig(vocab_size=100, d_model=32, n_layer=2, n_head=2, d_inner=48)
    funnel = FunnelConfig(vocab_size=100, d_model=32, n_head=2, d_head=16, d_inner=48, block_sizes=[1, 2])
    return {
        "albert": lambda: AlbertForSequenceClassification(AlbertConfig(embedding_size=16, **SMALL)),
        "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
        "xlnet": lambda: XLNetForSequenceClassification(xlnet),
        "funnel": lambda: FunnelForSequenceClassification(funnel),
    }


def _batch() -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    torch.manual_seed(1)
    ids = torch.randint(5, 90, (4, 12))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_mask": torch.ones(4)}
    return inputs | {"labels": torch.tensor([0, 1, 0, 1])}, {LOGITS: torch.randn(4, 2)}


def _trained(trainee: Trainee, module: nn.Module) -> dict[str, Tensor]:
    """Weights after three steps."""
    optimizer = torch.optim.SGD([each for each in trainee.parameters() if each.requires_grad], lr=1e-2)
    inputs, teacher = _batch()
    trainee.eval()
    for _ in range(3):
        sums, _ = module(inputs, teacher)
        sums.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {name: value.detach().clone() for name, value in full_state(trainee).items()}


@pytest.mark.parametrize("name", ["albert", "bert", "funnel", "xlnet"])
def test_every_family_trains_divided_as_whole(name: str, process_group: None) -> None:
    def new() -> Trainee:
        torch.manual_seed(0)
        return Trainee(_models()[name](), build_objective(DistillConfig()))

    alone = new()
    expected = _trained(alone, alone)
    divided = new()
    shard(divided, divided.student, CPU)
    assert sum(is_sharded(module) for module in divided.modules()) > 2, "layers are divided one by one"
    found = _trained(divided, divided)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "unused"), [("albert", False), ("bert", False), ("xlnet", True), ("funnel", False)])
def test_parameters_that_a_head_does_not_use_are_noticed(name: str, unused: bool, process_group: None) -> None:
    """DDP would wait for the gradient of XLNet's mask embedding in the second step."""
    trainee = Trainee(_models()[name](), build_objective(DistillConfig()))
    trainee.train()
    inputs, teacher = _batch()

    state = torch.get_rng_state()
    found = leaves_unused(trainee, inputs, teacher, Precision("fp32", CPU).autocast())
    assert found is unused
    assert torch.equal(torch.get_rng_state(), state)
    assert trainee.training
    assert all(each.grad is None for each in trainee.parameters())
    _trained(trainee, replicate(trainee, CPU, find_unused=found))


def test_a_compiled_language_model_computes_logits_of_hidden_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def compile_eagerly(function: Any, **options: Any) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        return real(function, backend=backend, **options)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SMALL)).eval()
    seen: list[tuple[int, ...]] = []
    model.cls.predictions.decoder.register_forward_hook(lambda module, given, output: seen.append(tuple(output.shape)))
    run = compiled(model)
    for count in (2, 3, 5):
        inputs = {
            "input_ids": torch.randint(5, 90, (4, 12)),
            "attention_mask": torch.ones(4, 12, dtype=torch.long),
            "items": torch.randint(0, 12, (4, count)),
        }
        found = forward(model, inputs, {LOGITS}, run)[LOGITS]
        torch.testing.assert_close(found, forward(model, inputs, {LOGITS})[LOGITS])
        assert seen == [(4, count, 100)] * 2
        seen.clear()
    assert len(graphs) == 1, "the number of hidden tokens, another one in each batch, compiles nothing again"
    found.sum().backward()
    assert all(each.grad is not None for each in model.bert.encoder.parameters())
    assert "forward" not in model.bert.__dict__
