"""BERT-of-Theseus: the hybrid against layers called one by one, its ends against the two models, and its refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForTokenClassification,
    ModernBertConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from raybrew.config.terms import TheseusConfig
from raybrew.errors import ModelError
from raybrew.models.composite import Hybrid, check_hybrid
from raybrew.models.initialise import init_from_teacher
from raybrew.training.stages import probability, replaced_at

STANDARD = {"vocab_size": 40, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}


def of(config: Any, layers: int) -> Any:
    return config(num_hidden_layers=layers, max_position_embeddings=24, **STANDARD)


FAMILIES = {
    "bert": (BertForSequenceClassification, lambda layers: of(BertConfig, layers)),
    "bert qa": (BertForQuestionAnswering, lambda layers: of(BertConfig, layers)),
    "roberta": (RobertaForSequenceClassification, lambda layers: of(RobertaConfig, layers)),
    "electra": (ElectraForTokenClassification, lambda layers: of(ElectraConfig, layers)),
    "distilbert": (
        DistilBertForSequenceClassification,
        lambda layers: DistilBertConfig(
            vocab_size=40, dim=8, n_heads=2, hidden_dim=16, n_layers=layers, max_position_embeddings=24
        ),
    ),
}


def pair(family: str, student_layers: int = 3, teacher_layers: int = 6) -> tuple[Any, Any]:
    build, config = FAMILIES[family]
    torch.manual_seed(0)
    teacher = build(config(teacher_layers))
    student = build(config(student_layers))
    init_from_teacher(student, teacher, tuple(range(1, student_layers + 1)))
    with torch.no_grad():  # layers that are no longer the teacher's
        for name, value in student.named_parameters():
            if ".layer." in name:
                value.add_(0.1 * torch.randn_like(value))
    return student, teacher


def tokens() -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[1, 4:] = mask[3, 2:] = 0
    return {"input_ids": torch.randint(2, 40, (4, 7)), "attention_mask": mask}


def answers(outputs: Any) -> Tensor:
    return outputs["logits"] if "logits" in outputs else torch.stack([outputs["start_logits"], outputs["end_logits"]])


def naively(student: Any, teacher: Any, replaced: tuple[bool, ...]) -> Tensor:
    """A third model of the teacher's size, whose weights are those of the chosen layers; student layers stand alone."""
    stack = next(name for name, module in teacher.named_modules() if name.endswith((".encoder", ".transformer")))
    ours, theirs = student.get_submodule(stack).layer, teacher.get_submodule(stack).layer
    group = len(theirs) // len(ours)
    chosen = [
        layer
        for index, own in enumerate(replaced)
        for layer in ([ours[index]] if own else theirs[index * group : (index + 1) * group])
    ]
    config = type(teacher.config).from_dict(teacher.config.to_dict())
    setattr(config, "n_layers" if config.model_type == "distilbert" else "num_hidden_layers", len(chosen))
    built = type(teacher)(config).eval()
    weights = {name: value for name, value in teacher.state_dict().items() if f"{stack}.layer." not in name}
    for index, layer in enumerate(chosen):
        weights |= {f"{stack}.layer.{index}.{name}": value for name, value in layer.state_dict().items()}
    built.load_state_dict(weights)
    with torch.no_grad():
        return answers(built(**tokens()))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_forced_choices_are_a_model_of_those_layers(family: str) -> None:
    student, teacher = pair(family)
    student.eval()
    hybrid = Hybrid(student, teacher)
    with torch.no_grad():
        alone, whole = answers(student(**tokens())), answers(teacher(**tokens()))
        for replaced in itertools.product((False, True), repeat=3):
            hybrid.choose(replaced)
            found = answers(hybrid(**tokens(), return_dict=True))
            torch.testing.assert_close(found, naively(student, teacher, replaced))
            assert torch.equal(found, alone) == all(replaced)
            assert torch.equal(found, whole) == (not any(replaced))
        # The teacher is what it was.
        assert torch.equal(answers(teacher(**tokens())), whole)


def test_only_layers_in_use_are_trained() -> None:
    student, teacher = pair("bert")
    hybrid = Hybrid(student.train(), teacher)
    hybrid.choose((False, True, False))
    answers(hybrid(**tokens())).square().sum().backward()
    got = {name for name, value in student.named_parameters() if value.grad is not None}
    assert got == {name for name, _ in student.named_parameters() if ".layer.1." in name}
    assert not any(value.requires_grad or value.grad is not None for value in teacher.parameters())
    assert not teacher.training
    assert len(teacher.bert.encoder.layer) == 6


def test_probabilities_rise_to_one() -> None:
    config = TheseusConfig(start=0.3)
    chances = [probability(config, place, 11) for place in range(11)]
    torch.testing.assert_close(torch.tensor(chances), torch.linspace(0.3, 1, 11))
    early = [probability(TheseusConfig(start=0.0, full_at=0.5), place, 21) for place in range(21)]
    assert early[0] == 0.0
    assert early[5] == pytest.approx(5 / 9.5)
    assert early[10:] == [1.0] * 11
    assert probability(config, 0, 1) == 0.3  # one step has no way to rise


def test_choices_follow_seed_and_step() -> None:
    assert replaced_at(1.0, 6, 0, 0) == (True,) * 6
    drawn = [replaced_at(0.5, 6, seed, step) for seed in range(2) for step in range(200)]
    assert drawn == [replaced_at(0.5, 6, seed, step) for seed in range(2) for step in range(200)]
    assert len(set(drawn)) > 50
    assert 0.45 < sum(map(sum, drawn)) / (6 * len(drawn)) < 0.55
    assert all(any(each) for each in drawn)
    # Never none, which would leave a step nothing to train.
    assert {sum(replaced_at(0.0, 3, 0, step)) for step in range(50)} == {1}
    assert len({replaced_at(0.0, 3, 0, step) for step in range(50)}) == 3


def test_models_that_do_not_fit() -> None:
    student, teacher = pair("bert", 4, 6)
    with pytest.raises(ModelError, match=r"6 layers cannot be divided among 4 of .*layers: 1, 2, 3, 6"):
        Hybrid(student, teacher)
    narrow = BertConfig(num_hidden_layers=3, **(STANDARD | {"hidden_size": 4}))
    with pytest.raises(ModelError, match="the student is 4 wide, the teacher 8"):
        check_hybrid(narrow, teacher.config)
    with pytest.raises(ModelError, match="a student of family 'roberta' in a teacher of family 'bert'; allowed: both"):
        check_hybrid(of(RobertaConfig, 3), teacher.config)
    with pytest.raises(ModelError, match="'modernbert'"):
        check_hybrid(ModernBertConfig(), ModernBertConfig())
    student, teacher = pair("bert")
    with torch.no_grad():
        student.classifier.weight.add_(1)
    with pytest.raises(ModelError, match=r"classifier.weight of the student .* is not the teacher's"):
        Hybrid(student, teacher)
