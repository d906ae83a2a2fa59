"""Scores taken from projections beside scaled-dot-product attention, against what the same model gives when eager."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from raybrew.errors import ModelError
from raybrew.models import attention
from raybrew.models.attention import attention_signals
from raybrew.models.forward import forward
from raybrew.signals import LOGITS, POOLED, Signal

LAYERS, HEADS = 3, 4
_SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16}
_DISTILBERT = {"vocab_size": 50, "dim": 16, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 20}

#: Those whose projections are hooked, then those that run eagerly.
HOOKED = {
    "Bert": _SIZES,
    "Roberta": _SIZES,
    "XLMRoberta": _SIZES,
    "Camembert": _SIZES,
    "Electra": {**_SIZES, "embedding_size": 8},
    "DistilBert": {**_DISTILBERT, "max_position_embeddings": 40},
}
EAGER = {
    "MPNet": _SIZES,
    "Albert": {**_SIZES, "embedding_size": 8},
    "DebertaV2": {**_SIZES, **_DEBERTA},
    "ModernBert": {**_SIZES, "pad_token_id": 0, "local_attention": 4},
}


def make(family: str, **changes: object) -> PreTrainedModel:
    """A tiny model with scores of the order of 1 (fresh weights give almost uniform attention)."""
    sizes = (HOOKED | EAGER)[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        special = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        config = getattr(transformers, f"{family}Config")(**special, **sizes, **changes)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(std=0.4)
    return model.eval()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7])
    return {"input_ids": torch.randint(5, 50, (3, 9), generator=generator), "attention_mask": mask}


def probabilities(scores: Tensor, mask: Tensor) -> Tensor:
    """The softmax over real keys, zero for padded queries."""
    scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e9)
    return scores.softmax(dim=-1) * mask[:, None, :, None]


def eager_probabilities(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.set_attn_implementation("eager")
    found = model(**inputs, output_attentions=True).attentions
    return [probs * inputs["attention_mask"][:, None, :, None] for probs in found]


def weighted(probs: list[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return sum((each * torch.randn(each.shape, generator=generator)).sum() for each in probs)  # type: ignore[return-value]


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture(autouse=True)
def _warn_anew() -> Iterator[None]:
    attention._warn_of_eager_attention.cache_clear()
    yield
    attention._warn_of_eager_attention.cache_clear()


@pytest.mark.parametrize("family", [*HOOKED, *EAGER])
def test_values_and_gradients_are_those_of_eager_attention(family: str) -> None:
    inputs = batch()
    ours, theirs = make(family), make(family)
    before = ours.config._attn_implementation
    request = [Signal("attention", layer) for layer in range(1, LAYERS + 1)]
    found = forward(ours, inputs, request)
    assert set(found) == set(request)
    assert ours.config._attn_implementation == before
    mine = [probabilities(found[signal], inputs["attention_mask"]) for signal in request]
    reference = eager_probabilities(theirs, inputs)
    assert mine[0].shape == (3, HEADS, 9, 9)
    assert float(reference[0].detach().max()) > 0.5  # not the uniform attention that hides mistakes
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    weighted(mine).backward()
    weighted(reference).backward()
    compared = 0
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        # Sums over tokens cancel, so errors are measured by the largest entry.
        largest = float(other.grad.abs().max())
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=max(1e-5, 1e-5 * largest), msg=name)
        compared += int(bool(other.grad.any()))
    assert compared > 8


@pytest.mark.parametrize("family", HOOKED)
def test_scaled_dot_product_attention_stays_on(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make(family), batch()
    plain = forward(model, inputs, [LOGITS, Signal("hidden", 2)])
    calls, hooks, before = 0, [], num_hooks(model)  # transformers collects hidden states by hooks of its own
    original = nn.functional.scaled_dot_product_attention

    def counted(*args: object, **kwargs: object) -> Tensor:
        nonlocal calls
        calls += 1
        hooks.append(num_hooks(model))
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    found = forward(model, inputs, [LOGITS, Signal("hidden", 2), Signal("attention", 2)])
    assert calls == LAYERS
    assert hooks == [before + 2] * LAYERS  # the query and key of the one layer that was asked for
    assert num_hooks(model) == before
    assert set(found) == {LOGITS, Signal("hidden", 2), Signal("attention", 2)}
    for signal in plain:
        assert torch.equal(plain[signal], found[signal])


@pytest.mark.parametrize("family", HOOKED)
def test_scores_are_the_scaled_products_and_carry_no_mask(family: str) -> None:
    """Head by head from the hidden states, also where tokens are padded."""
    model, inputs = make(family), batch()
    found = forward(model, inputs, [Signal("hidden", 1), Signal("attention", 2)])
    found |= forward(model, inputs, [Signal("hidden", 0)])
    names = ("q_lin", "k_lin") if family == "DistilBert" else ("query", "key")
    first = next(
        m for n, m in model.named_modules() if n.endswith("layer.1.attention" + ("" if "q_lin" in names else ".self"))
    )
    query, key = (getattr(first, name)(found[Signal("hidden", 1)]) for name in names)
    size = 16 // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        expected = torch.einsum("bqd,bkd->bqk", query[..., part], key[..., part]) / size**0.5
        torch.testing.assert_close(found[Signal("attention", 2)][:, head], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "MPNet"])
def test_dropout_of_probabilities_does_not_touch_scores(family: str) -> None:
    model = make(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    request = [Signal("attention", 1)]
    calm = forward(model.eval(), batch(), request)
    torch.testing.assert_close(forward(model.train(), batch(), request), calm)


def test_autocast_computes_scores_in_its_type() -> None:
    model, request = make("Bert"), [Signal("attention", 3)]
    exact = forward(model, batch(), request)[request[0]]
    with torch.autocast("cpu", torch.bfloat16):
        scores = forward(model, batch(), request)[request[0]]
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.float(), exact, rtol=0.1, atol=0.3)


def test_inside_and_around_ddp(tmp_path: Path) -> None:
    class Trainee(nn.Module):
        def __init__(self, student: nn.Module) -> None:
            super().__init__()
            self.student = student

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            found = forward(self.student, inputs, [LOGITS, Signal("attention", 1)])
            return found[Signal("attention", 1)].square().mean() + found[LOGITS].square().mean()

    alone, inputs = Trainee(make("Bert")), batch()
    alone(inputs).backward()
    store = dist.FileStore(str(tmp_path / "ddp"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        trainee = Trainee(make("Bert"))
        nn.parallel.DistributedDataParallel(trainee)(inputs).backward()
        for one, other in zip(trainee.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        wrapped = nn.parallel.DistributedDataParallel(trainee.student)
        before = num_hooks(trainee)
        around = forward(wrapped, inputs, [Signal("attention", 1)])
        torch.testing.assert_close(around, forward(trainee.student, inputs, [Signal("attention", 1)]))
        assert num_hooks(trainee) == before
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("family", ["Electra", "Albert"])
def test_a_failing_forward_pass_leaves_nothing_behind(family: str) -> None:
    model = make(family)
    before = num_hooks(model)
    with pytest.raises(IndexError):  # no such token, found by the embeddings
        forward(model, batch() | {"input_ids": torch.full((3, 9), 99)}, [Signal("attention", 1)])
    assert num_hooks(model) == before
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", [*HOOKED, "Albert"])
def test_probabilities_are_those_of_eager_attention(family: str) -> None:
    inputs, layer = batch(), 2
    found = forward(make(family), inputs, [Signal("attention_probs", layer)])[Signal("attention_probs", layer)]
    reference = eager_probabilities(make(family), inputs)[layer - 1]
    torch.testing.assert_close(found * inputs["attention_mask"][:, None, :, None], reference, rtol=1e-5, atol=1e-5)
    assert not found[1, :, :, 6:].any()  # padded keys get nothing


@pytest.mark.parametrize("family", HOOKED)
def test_queries_keys_and_values_are_those_of_the_model(family: str) -> None:
    """Attention rebuilt from the three is what the layer hands to its output projection."""
    model, inputs = make(family), batch()
    kinds = ("query", "key", "value")
    seen: list[Tensor] = []
    (output,) = [
        module
        for name, module in model.named_modules()
        if name.endswith(("layer.1.attention.output.dense", "layer.1.attention.out_lin"))
    ]
    output.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = forward(model, inputs, [Signal(kind, 2) for kind in kinds])
    assert set(found) == {Signal(kind, 2) for kind in kinds}
    heads = [found[Signal(kind, 2)].unflatten(-1, (HEADS, -1)).transpose(1, 2) for kind in kinds]
    probs = probabilities(heads[0] @ heads[1].transpose(2, 3) / 4**0.5, inputs["attention_mask"])
    real = inputs["attention_mask"].bool()
    rebuilt = (probs @ heads[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(rebuilt[real], seen[0][real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", HOOKED)
def test_pooled_output_is_what_the_last_layer_reads_without_dropout(family: str) -> None:
    model, inputs = make(family), batch()
    last = getattr(model.classifier, "out_proj", model.classifier)
    found = forward(model, inputs, [LOGITS, POOLED])
    assert found[POOLED].shape == (3, 16)
    torch.testing.assert_close(last(found[POOLED]), found[LOGITS], rtol=1e-6, atol=1e-6)
    if family == "Bert":
        torch.testing.assert_close(found[POOLED], model.bert(**inputs).pooler_output)
    # In training, with all dropout but that before the last layer off, it stays what it is.
    trained = make(
        family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attention_dropout=0.0, dropout=0.0
    )
    (trained.classifier.dropout if hasattr(trained.classifier, "dropout") else trained.dropout).p = 0.5
    if not hasattr(trained.classifier, "dropout"):
        pooled = forward(trained.train(), inputs, [POOLED])[POOLED]
        torch.testing.assert_close(pooled, found[POOLED], rtol=1e-5, atol=1e-5)
        return
    # RoBERTa's and ELECTRA's heads use one dropout twice, so the second use is looked at alone.
    trained.classifier.dense.register_forward_pre_hook(lambda module, args: (given[0],))
    given = [torch.randn(3, 16)]
    dense = nn.functional.linear(given[0], trained.classifier.dense.weight, trained.classifier.dense.bias)
    activated = nn.functional.gelu(dense) if family == "Electra" else dense.tanh()
    torch.testing.assert_close(forward(trained.train(), inputs, [POOLED])[POOLED], activated, rtol=1e-5, atol=1e-5)


def test_models_without_a_pooled_output_are_named() -> None:
    with torch.random.fork_rng():
        config = transformers.BertConfig(**_SIZES)
        tagger = transformers.AutoModelForTokenClassification.from_config(config).eval()
        bare = transformers.BertModel(config).eval()
    with pytest.raises(ModelError, match=r"pooled .* BertForTokenClassification reads \(3, 9, 16\) instead of one"):
        forward(tagger, batch(), [POOLED])
    with pytest.raises(ModelError, match=r"BertModel has no linear layer that gives"):
        forward(bare, batch(), [POOLED])


def test_an_unknown_architecture_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make("MPNet")
    with caplog.at_level(logging.WARNING, "raybrew"):
        forward(model, batch(), [Signal("attention", 1)])
        forward(model, batch(), [Signal("attention", 2)])
        forward(make("Bert"), batch(), [Signal("attention", 2)])
    (record,) = caplog.records
    assert "MPNetForSequenceClassification" in record.getMessage()
    assert "eager attention" in record.getMessage()


def test_masked_scores_of_an_eager_model_are_finite_when_summed() -> None:
    """Local attention masks pairs of real tokens; sums over heads and squares of them must not overflow."""
    found = forward(make("ModernBert"), batch(), [Signal("attention", 2)])[Signal("attention", 2)]
    assert float(found.detach().min()) == -1e4
    assert torch.isfinite(found.sum(dim=1).square().sum())


def test_what_cannot_work_is_refused() -> None:
    for signal in (Signal("attention", 4), Signal("attention_probs", 4), Signal("value", 4)):
        with pytest.raises(ModelError, match=rf"{signal.name} was asked for, but BertFor.* layers 1 to 3"):
            forward(make("Bert"), batch(), [signal])
    with pytest.raises(ModelError, match=r"value.02 was asked for, but where MPNetFor.* is not known; known: bert, "):
        forward(make("MPNet"), batch(), [Signal("value", 2)])
    with pytest.raises(ModelError, match=r"attention.07 was asked for, but MPNetFor.* layers 1 to 3"):
        forward(make("MPNet"), batch(), [Signal("attention", 7)])
    checkpointed = make("Bert").train()
    checkpointed.bert.encoder.layer[1].gradient_checkpointing = True
    with pytest.raises(ModelError, match="gradient checkpointing"):
        forward(checkpointed, batch(), [Signal("attention", 1)])
    scores = [Signal("attention", 1)]
    with pytest.raises(ModelError, match="Linear: no Hugging Face model"), attention_signals(nn.Linear(2, 2), scores):
        pass
    odd = make("MPNet")
    odd.config.num_hidden_layers = 2
    with pytest.raises(ModelError, match="2 layers, but 3 softmaxes"):
        forward(odd, batch(), [Signal("attention", 1)])
    twice = make("Bert")

    def run_twice() -> None:
        with attention_signals(twice, [Signal("attention", 1)]):
            twice(**batch())
            twice(**batch())

    with pytest.raises(ModelError, match="expected one forward pass, 2 were run"):
        run_twice()
