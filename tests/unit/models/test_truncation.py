"""Students cut out of wider teachers: which numbers they take, by loops over single heads and neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from raybrew.config import ShapeConfig, StudentConfig
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource
from raybrew.models.shapes import FAMILIES
from raybrew.models.students import build_student
from unit.models.test_students import LABELS, LAYER, SIZES, save_teacher, tiny_config, weights_of

#: Heads of 8 numbers in the teachers; students keep whole heads, or all heads with half of their numbers.
WHOLE = ShapeConfig(layers=2, hidden=16, heads=2, feed_forward=24)
HALVED = ShapeConfig(layers=2, hidden=16, heads=4, feed_forward=24)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    folder = tmp_path_factory.mktemp("teachers")
    more = {"electra": {"embedding_size": 32}}
    found = {}
    for family in FAMILIES:
        config = tiny_config(family)
        for name, value in more.get(family, {}).items():
            setattr(config, name, value)
        found[family] = save_teacher(folder / family, config)
    return found


def build(source: ModelSource, shape: ShapeConfig, **student: Any) -> tuple[PreTrainedModel, str]:
    config = StudentConfig(shape=shape, init="truncate", **student)
    model, _, description = build_student(config, source, "classification", LABELS, 0)
    return model, description


def numbers_of_heads(shape: ShapeConfig, rotary: bool = False) -> list[int]:
    """Rows of the teacher's projection that become rows of the student's, head by head."""
    assert shape.hidden is not None
    assert shape.heads is not None
    ours, theirs = shape.hidden // shape.heads, 8
    rows = []
    for head in range(shape.heads):
        inside = list(range(ours))
        if rotary:
            # Number i of a head turns by theta ** (-2 i / width), together with number i + width / 2.
            half = [next(k for k in range(theirs // 2) if k / theirs == i / ours) for i in range(ours // 2)]
            inside = half + [k + theirs // 2 for k in half]
        rows += [head * theirs + number for number in inside]
    return rows


@pytest.mark.parametrize("shape", [WHOLE, HALVED])
def test_bert_keeps_first_numbers_neurons_and_heads(shape: ShapeConfig, teachers: dict[str, ModelSource]) -> None:
    model, description = build(teachers["bert"], shape)
    ours, theirs = dict(model.state_dict()), weights_of(teachers["bert"])
    rows = numbers_of_heads(shape)
    assert rows == ([*range(16)] if shape is WHOLE else [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27])
    assert torch.equal(ours["bert.embeddings.word_embeddings.weight"],
                       theirs["bert.embeddings.word_embeddings.weight"][:, :16])  # fmt: skip
    for place, origin in enumerate((2, 4)):
        mine, wide = f"bert.encoder.layer.{place}.", f"bert.encoder.layer.{origin - 1}."
        for name in ("query", "key", "value"):
            weight, bias = (theirs[f"{wide}attention.self.{name}.{part}"] for part in ("weight", "bias"))
            assert torch.equal(ours[f"{mine}attention.self.{name}.weight"], weight[rows][:, :16])
            assert torch.equal(ours[f"{mine}attention.self.{name}.bias"], bias[rows])
        output = theirs[f"{wide}attention.output.dense.weight"]
        assert torch.equal(ours[f"{mine}attention.output.dense.weight"], output[:16][:, rows])
        assert torch.equal(
            ours[f"{mine}intermediate.dense.weight"], theirs[f"{wide}intermediate.dense.weight"][:24, :16]
        )
        assert torch.equal(ours[f"{mine}output.dense.weight"], theirs[f"{wide}output.dense.weight"][:16, :24])
        assert torch.equal(ours[f"{mine}output.LayerNorm.weight"], theirs[f"{wide}output.LayerNorm.weight"][:16])
    assert torch.equal(ours["classifier.weight"], theirs["classifier.weight"][:, :16])
    assert "100.0 % of" in description
    assert "out of wider ones" in description


@pytest.mark.parametrize("shape", [WHOLE, HALVED])
def test_modernbert_cuts_inside_its_fused_matrices_and_keeps_frequencies(
    shape: ShapeConfig, teachers: dict[str, ModelSource]
) -> None:
    model, _ = build(teachers["modernbert"], shape)
    ours, theirs = dict(model.state_dict()), weights_of(teachers["modernbert"])
    rows = numbers_of_heads(shape, rotary=True)
    if shape is HALVED:
        assert rows[:4] == [0, 2, 4, 6]
    for place, origin in enumerate((2, 4)):
        both = ((ours, place), (theirs, origin - 1))
        fused, wide = (weights[f"model.layers.{layer}.attn.Wqkv.weight"] for weights, layer in both)
        for part in range(3):
            assert torch.equal(fused[part * 16 : part * 16 + 16], wide[part * 32 : part * 32 + 32][rows][:, :16])
        gated, wide = (weights[f"model.layers.{layer}.mlp.Wi.weight"] for weights, layer in both)
        assert torch.equal(gated[:24], wide[:24, :16])
        assert torch.equal(gated[24:], wide[64 : 64 + 24, :16])
        attended = theirs[f"model.layers.{origin - 1}.attn.Wo.weight"]
        assert torch.equal(ours[f"model.layers.{place}.attn.Wo.weight"], attended[:16][:, rows])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [WHOLE, HALVED])
def test_every_tensor_of_every_family_starts_from_the_teacher(
    family: str, shape: ShapeConfig, teachers: dict[str, ModelSource]
) -> None:
    """Each number of the student is one of the teacher's tensor of its name, and it runs."""
    model, description = build(teachers[family], shape)
    theirs = weights_of(teachers[family])
    assert "random:" not in description or family == "modernbert"
    compared = 0
    for name, tensor in model.state_dict().items():
        wide = theirs.get(LAYER.sub(lambda found: f"{found[1]}{(1, 3)[int(found[2])]}", name, count=1))
        if wide is not None:
            assert set(tensor.flatten().tolist()) <= set(wide.flatten().tolist()), name
            compared += LAYER.search(name) is not None
    assert compared >= 10
    tokens = torch.tensor([[2, 5, 6, 3]])
    assert model(input_ids=tokens).logits.isfinite().all()


def test_electra_small_out_of_electra_base_begins_with_the_teachers_first_numbers(
    teachers: dict[str, ModelSource],
) -> None:
    """Its embeddings keep the teacher's width, and the projection that is new lets the first numbers through."""
    model, description = build(teachers["electra"], WHOLE)
    teacher = AutoModelForSequenceClassification.from_pretrained(teachers["electra"].model)
    tokens = torch.tensor([[2, 5, 6, 3]])
    hidden: list[Tensor] = [
        each(input_ids=tokens, output_hidden_states=True).hidden_states[0] for each in (model, teacher)
    ]
    assert torch.allclose(hidden[0], hidden[1][..., :16])
    assert "100.0 %" in description


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (ShapeConfig(layers=2, hidden=16, heads=1), r"head width 16 of 8\).*student\.shape\.heads=2 keeps whole heads"),
        (ShapeConfig(layers=2, hidden=64, heads=8), r"hidden 64 of 32, heads 8 of 4"),
        (ShapeConfig(layers=2, hidden=16, feed_forward=65), r"feed_forward 65 of 64"),
    ],
)
def test_students_larger_than_their_teacher_are_refused(
    shape: ShapeConfig, words: str, teachers: dict[str, ModelSource]
) -> None:
    with pytest.raises(ConfigError, match=rf"student\.init: given 'truncate'.*{words}"):
        build(teachers["bert"], shape)


def test_what_cannot_be_cut_soundly_is_refused(tmp_path: Any) -> None:
    save_teacher(tmp_path / "ernie", tiny_config("ernie"))
    with pytest.raises(ConfigError, match="family 'ernie'; it is known for bert"):
        build(ModelSource(str(tmp_path / "ernie")), WHOLE)
    save_teacher(tmp_path / "electra", tiny_config("electra"))  # its embeddings are 16 wide
    with pytest.raises(ConfigError, match=r"student\.shape\.hidden=16, the width of the embeddings"):
        build(ModelSource(str(tmp_path / "electra")), WHOLE)
    model, _ = build(ModelSource(str(tmp_path / "electra")), ShapeConfig(layers=1, hidden=8, heads=1))
    theirs = weights_of(ModelSource(str(tmp_path / "electra")))
    assert torch.equal(model.state_dict()["electra.embeddings_project.weight"],
                       theirs["electra.embeddings_project.weight"][:8])  # fmt: skip


def test_a_student_of_the_teachers_size_takes_all_as_it_is(teachers: dict[str, ModelSource]) -> None:
    shape = ShapeConfig(layers=SIZES["num_hidden_layers"])
    for family in ("bert", "modernbert"):
        model, description = build(teachers[family], shape)
        theirs = weights_of(teachers[family])
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
        assert "out of wider ones" not in description
