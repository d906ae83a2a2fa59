"""Students after the teacher's shape: which weights they take over, how they are seeded, what is refused."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizerFast,
    ElectraConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from raybrew.config import ShapeConfig, StudentConfig
from raybrew.errors import ConfigError, EnvironmentProblem, ModelError
from raybrew.models.initialise import init_from_teacher
from raybrew.models.inspection import count_parameters
from raybrew.models.loading import ModelSource, model_labels
from raybrew.models.shapes import FAMILIES, dims_of
from raybrew.models.students import (
    Student,
    build_student,
    empty_model,
    empty_student,
    random_model,
    student_config,
)

LABELS = ("bad", "good", "unsure")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d")
SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
#: What a family needs besides the usual sizes.
ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "distilbert": {"n_layers": 4, "dim": 32, "n_heads": 4, "hidden_dim": 64},
    "electra": {**SIZES, "embedding_size": 16},
    "deberta-v2": {**SIZES, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
}
LAYER = re.compile(r"\b(layers?\.)(\d+)\b")


def tiny_config(family: str, **more: Any) -> PretrainedConfig:
    sizes = ARGUMENTS.get(family, SIZES)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
    return CONFIG_MAPPING[family](vocab_size=40, max_position_embeddings=40, **SPECIAL, **names, **sizes, **more)


def save_teacher(folder: Path, config: PretrainedConfig) -> ModelSource:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases start equal in every layer; only noise tells which layer was copied.
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return ModelSource(str(folder))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    folder = tmp_path_factory.mktemp("teachers")
    return {family: save_teacher(folder / family, tiny_config(family)) for family in (*FAMILIES, "ernie")}


def weights_of(source: ModelSource) -> dict[str, Tensor]:
    return dict(AutoModelForSequenceClassification.from_pretrained(source.model).state_dict())


def build(source: ModelSource | None, seed: int = 0, **student: Any) -> Student:
    return build_student(StudentConfig(**student), source, "classification", LABELS, seed)


def logits_of(model: PreTrainedModel) -> Tensor:
    tokens = torch.tensor([[2, 5, 6, 3]])
    with torch.inference_mode():
        outputs = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
    assert len(outputs.hidden_states) == dims_of(model.config).layers + 1
    logits: Tensor = outputs.logits
    return logits


def digest(model: PreTrainedModel) -> str:
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("family", [*FAMILIES, "ernie"])
@pytest.mark.parametrize(("rule", "layers"), [("even", (2, 4)), ("first", (1, 2)), ((4, 1), (4, 1))])
def test_a_student_of_the_same_width_takes_every_weight_of_its_teacher_layers(
    family: str, rule: str | tuple[int, ...], layers: tuple[int, int], teachers: dict[str, ModelSource]
) -> None:
    student, tokenizer, description = build(teachers[family], shape=ShapeConfig(layers=2), init_layers=rule)
    theirs = weights_of(teachers[family])
    compared = 0
    for name, tensor in student.state_dict().items():
        source = LAYER.sub(lambda found: f"{found[1]}{layers[int(found[2])] - 1}", name, count=1)
        if source not in theirs:
            # ModernBERT's first layer has no norm before its attention, so no other can start from there.
            assert (family, source) == ("modernbert", "model.layers.0.attn_norm.weight")
            continue
        assert torch.equal(tensor, theirs[source]), name
        compared += LAYER.search(name) is not None
    assert compared >= 10
    assert logits_of(student).shape == (1, 3)
    assert student.config.model_type == family
    assert type(student) is type(AutoModelForSequenceClassification.from_pretrained(teachers[family].model))
    assert model_labels(student.config) == LABELS
    assert tokenizer.convert_tokens_to_ids("d") == 8
    assert f"{family}, 2 layers x 32, 4 heads, feed-forward 64" in description
    assert f"teacher layers {layers[0]}, {layers[1]}" in description


def test_modernbert_layers_keep_the_kind_of_attention_they_were_trained_with(teachers: dict[str, ModelSource]) -> None:
    kinds = tiny_config("modernbert").layer_types
    assert len(set(kinds)) == 2
    picked = build(teachers["modernbert"], shape=ShapeConfig(layers=2), init_layers=(2, 4)).model.config.layer_types
    assert picked == [kinds[1], kinds[3]]
    grown = build(teachers["modernbert"], shape=ShapeConfig(layers=6), init="random").model.config.layer_types
    assert grown == [*kinds, *kinds[:2]]


def test_deberta_pooler_follows_the_width(teachers: dict[str, ModelSource]) -> None:
    student = build(teachers["deberta-v2"], shape=ShapeConfig(layers=1, hidden=16), init="random").model
    assert student.config.pooler_hidden_size == 16
    assert logits_of(student).shape == (1, 3)


def test_narrower_feed_forward_leaves_only_those_tensors_random(teachers: dict[str, ModelSource]) -> None:
    student, _, description = build(teachers["bert"], shape=ShapeConfig(layers=1, feed_forward=48))
    theirs = weights_of(teachers["bert"])
    differing = {
        name
        for name, tensor in student.state_dict().items()
        if not torch.equal(tensor, theirs[name.replace("layer.0.", "layer.3.")])
        if tensor.shape == theirs[name.replace("layer.0.", "layer.3.")].shape
    }
    assert differing == set()
    assert "random: bert.encoder.layer.0.intermediate.dense.weight" in description
    assert "bert.encoder.layer.0.output.dense.weight" in description
    assert "100.0 %" not in description


def test_narrower_electra_takes_the_embeddings_and_nothing_else(teachers: dict[str, ModelSource]) -> None:
    student, _, description = build(teachers["electra"], shape=ShapeConfig(layers=2, hidden=16), init="teacher")
    theirs = weights_of(teachers["electra"])
    equal = {name for name, tensor in student.state_dict().items() if torch.equal(tensor, theirs.get(name, tensor + 1))}
    # 16 is the embeddings' width too: a student of that width needs no projection and has none.
    assert {name for name in equal if "embeddings." in name} == {name for name in theirs if "embeddings." in name}
    assert not any("encoder" in name for name in equal)
    assert student.config.embedding_size == 16
    assert "random: electra.encoder" in description


def test_narrower_bert_has_nothing_to_start_from(teachers: dict[str, ModelSource]) -> None:
    with pytest.raises(ModelError, match=r"nothing to start from.*x 32,.*x 16,.*student\.init=random"):
        build(teachers["bert"], shape=ShapeConfig(layers=2, hidden=16), init="teacher")
    _, _, automatic = build(teachers["bert"], shape=ShapeConfig(layers=2, hidden=16), seed=7)
    assert "random weights, seed 7" in automatic
    student, _, description = build(teachers["bert"], shape=ShapeConfig(layers=2, hidden=16), init="random", seed=7)
    assert logits_of(student).shape == (1, 3)
    assert description == "bert, 2 layers x 16, 2 heads, feed-forward 32, random weights, seed 7"


@pytest.mark.parametrize("init", ["teacher", "random"])
def test_weights_depend_on_the_seed_alone_and_leave_global_generators(
    init: str, teachers: dict[str, ModelSource]
) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    shape = ShapeConfig(layers=2, feed_forward=48)
    first = digest(build(teachers["bert"], shape=shape, init=init, seed=5).model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    torch.rand(9)
    assert digest(build(teachers["bert"], shape=shape, init=init, seed=5).model) == first
    assert digest(build(teachers["bert"], shape=shape, init=init, seed=6).model) != first


def test_weights_are_equal_in_another_process(teachers: dict[str, ModelSource]) -> None:
    code = (
        "import hashlib, sys\n"
        "from raybrew.config import ShapeConfig, StudentConfig\n"
        "from raybrew.models.students import ModelSource, build_student\n"
        "config = StudentConfig(shape=ShapeConfig(layers=2), init='random')\n"
        "model = build_student(config, ModelSource(sys.argv[1]), 'classification', tuple(sys.argv[2:]), 5).model\n"
        "parts = [name.encode() + tensor.numpy().tobytes() for name, tensor in model.state_dict().items()]\n"
        "print(hashlib.sha256(b''.join(parts)).hexdigest())"
    )
    arguments = [sys.executable, "-c", code, teachers["bert"].model, *LABELS]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=True)
    here = digest(build(teachers["bert"], 5, shape=ShapeConfig(layers=2), init="random").model)
    assert result.stdout.split()[-1] == here


def test_head_of_other_labels_is_not_taken_over(teachers: dict[str, ModelSource]) -> None:
    config = StudentConfig(shape=ShapeConfig(layers=4))
    theirs = weights_of(teachers["roberta"])
    for labels, equal in ((LABELS, True), (LABELS[::-1], False), (("a", "b"), False)):
        student, _, description = build_student(config, teachers["roberta"], "classification", labels, 0)
        assert torch.equal(student.state_dict()["classifier.dense.weight"], theirs["classifier.dense.weight"])
        ours = student.state_dict()["classifier.out_proj.weight"]
        assert ours.shape[0] == len(labels)
        assert (ours.shape == (3, 32) and torch.equal(ours, theirs["classifier.out_proj.weight"])) == equal
        assert ("random: classifier.out_proj.weight, classifier.out_proj.bias" in description) != equal
        assert model_labels(student.config) == labels


def test_tied_weights_stay_tied_and_count_once() -> None:
    config = BertConfig(vocab_size=40, **SIZES)
    teacher, student = BertForMaskedLM(config), BertForMaskedLM(student_config(config, full_shape(2), LABELS, (2, 4)))
    report = init_from_teacher(student, teacher, (2, 4))
    decoder, embeddings = student.get_output_embeddings().weight, student.get_input_embeddings().weight
    assert decoder is embeddings
    assert torch.equal(decoder, teacher.get_input_embeddings().weight)
    assert report.copied == count_parameters(student)
    assert (report.random, report.share, report.layers) == (0, 1.0, (2, 4))
    with torch.no_grad():
        teacher.get_input_embeddings().weight.add_(1)
    assert not torch.equal(embeddings, teacher.get_input_embeddings().weight)


def full_shape(layers: int) -> ShapeConfig:
    return ShapeConfig(layers=layers, hidden=32, heads=4, feed_forward=64)


@pytest.mark.parametrize(("layers", "message"), [((1,), "for a student of 2"), ((1, 5), "layers 1 to 4")])
def test_layers_outside_the_models_are_refused(layers: tuple[int, ...], message: str) -> None:
    teacher = BertForSequenceClassification(tiny_config("bert"))
    student = BertForSequenceClassification(BertConfig(**{**SIZES, "num_hidden_layers": 2}, vocab_size=40))
    with pytest.raises(ModelError, match=message):
        init_from_teacher(student, teacher, layers)


def test_models_without_common_names_have_nothing_in_common(teachers: dict[str, ModelSource]) -> None:
    student = AutoModelForSequenceClassification.from_pretrained(teachers["distilbert"].model)
    teacher = AutoModelForSequenceClassification.from_pretrained(teachers["modernbert"].model)
    before = digest(student)
    with pytest.raises(ModelError, match=r"modernbert.*distilbert.*init=random"):
        init_from_teacher(student, teacher, (1, 2, 3, 4))
    assert digest(student) == before


def test_albert_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = save_teacher(tmp_path, tiny_config("albert", embedding_size=16))
    with pytest.raises(ModelError, match=r"ALBERT teacher cannot be shaped: all its layers share.*student\.model"):
        build(source, shape=ShapeConfig(layers=2))


@pytest.mark.parametrize(
    ("family", "arguments", "shape"),
    [
        ("funnel", {"block_sizes": [2, 2], "d_model": 32, "n_head": 4}, ShapeConfig(layers=2)),  # no feed-forward width
        (
            "longformer",
            {**SIZES, "attention_window": [8] * 4},
            ShapeConfig(layers=2),
        ),  # not built: one window per layer
        ("llama", SIZES, ShapeConfig(layers=2, heads=2)),  # builds, but does not run: heads of keys are set apart
    ],
)
def test_family_that_cannot_be_shaped_is_refused_clearly(
    family: str, arguments: dict[str, Any], shape: ShapeConfig, tmp_path: Path
) -> None:
    CONFIG_MAPPING[family](vocab_size=40, **SPECIAL, **arguments).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"'{family}'.*bert"):
        build(ModelSource(str(tmp_path)), shape=shape, init="random")


def test_sizes_that_a_family_cannot_have_are_named(teachers: dict[str, ModelSource]) -> None:
    # Rotary positions turn pairs of numbers: heads of odd width build, but do not run.
    with pytest.raises(ModelError, match=r"student\.shape: .*modernbert, 1 layer x 27, 3 heads, feed-forward 54: \w"):
        build(teachers["modernbert"], shape=ShapeConfig(layers=1, hidden=27), init="random")


def test_a_model_keeps_its_weights_and_gets_a_seeded_head(teachers: dict[str, ModelSource]) -> None:
    labels = ("yes", "no")
    config = StudentConfig(model=teachers["bert"].model)
    before = torch.get_rng_state()
    one, tokenizer, description = build_student(config, None, "classification", labels, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(one) == digest(build_student(config, teachers["roberta"], "classification", labels, 1).model)
    assert digest(one) != digest(build_student(config, None, "classification", labels, 2).model)
    theirs = weights_of(teachers["bert"])
    assert torch.equal(one.state_dict()["bert.pooler.dense.weight"], theirs["bert.pooler.dense.weight"])
    assert logits_of(one).shape == (1, 2)
    assert model_labels(one.config) == labels
    assert tokenizer.convert_tokens_to_ids("d") == 8
    assert "4 layers x 32" in description
    assert "its own weights" in description


def test_a_head_of_other_labels_of_the_same_number_starts_anew(teachers: dict[str, ModelSource]) -> None:
    for family, head in (("bert", "classifier.weight"), ("roberta", "classifier.out_proj.weight")):
        theirs = weights_of(teachers[family])[head]
        config = StudentConfig(model=teachers[family].model)
        for labels, equal in ((LABELS, True), (LABELS[::-1], False)):
            one, again = (build_student(config, None, "classification", labels, 3).model for _ in range(2))
            assert torch.equal(one.state_dict()[head], theirs) == equal
            assert digest(one) == digest(again)
            assert torch.equal(one.base_model.get_input_embeddings().weight,
                               weights_of(teachers[family])[f"{family}.embeddings.word_embeddings.weight"])  # fmt: skip


def test_the_folder_of_an_earlier_run_stands_for_its_student(teachers: dict[str, ModelSource], tmp_path: Path) -> None:
    shutil.copytree(teachers["bert"].model, tmp_path / "distill-1" / "student")
    student, tokenizer, _ = build_student(StudentConfig(model=str(tmp_path / "distill-1")), None, "classification",
                                          ("x", "y"), 0)  # fmt: skip
    theirs = weights_of(teachers["bert"])
    assert torch.equal(student.state_dict()["bert.pooler.dense.weight"], theirs["bert.pooler.dense.weight"])
    assert model_labels(student.config) == ("x", "y")
    assert tokenizer.convert_tokens_to_ids("d") == 8


def test_what_is_missing_is_named(teachers: dict[str, ModelSource]) -> None:
    with pytest.raises(ConfigError, match="neither model nor shape"):
        build(teachers["bert"])
    with pytest.raises(ConfigError, match=r"student\.shape: needs teacher\.model"):
        build(None, shape="T6")
    with pytest.raises(ConfigError, match=r"student\.init_layers: .*init=random"):
        build(teachers["bert"], shape=ShapeConfig(layers=5))


@pytest.mark.parametrize(
    ("vocabulary", "name", "millions"),
    [
        (28996, "T6", 65),
        (28996, "T3", 44),
        (28996, "T3-small", 17),
        (28996, "T4-tiny", 14),
        (28996, "T12-nano", 17),
        (21128, "T3", 38),
        (21128, "T3-small", 14),
        (21128, "T4-tiny", 11),
    ],
)
def test_published_parameter_counts(vocabulary: int, name: str, millions: int, tmp_path: Path) -> None:
    BertConfig(vocab_size=vocabulary).save_pretrained(tmp_path)
    student = StudentConfig(shape=name, init="random")
    model = empty_student(student, ModelSource(str(tmp_path)), "classification", ("no", "yes"))
    assert next(model.parameters()).is_meta
    assert count_parameters(model) == pytest.approx(millions * 1e6, rel=0.05)


def test_bert_base_has_its_published_parameter_count_and_electra_small_its_own(tmp_path: Path) -> None:
    BertConfig(vocab_size=28996).save_pretrained(tmp_path / "bert")
    BertConfig(vocab_size=21128).save_pretrained(tmp_path / "chinese")
    ElectraConfig(
        vocab_size=21128, hidden_size=768, num_attention_heads=12, intermediate_size=3072, embedding_size=128
    ).save_pretrained(tmp_path / "electra")
    for student, family, millions in (
        (StudentConfig(model=str(tmp_path / "bert")), "bert", 108),
        (StudentConfig(model=str(tmp_path / "chinese")), "chinese", 102),
        (StudentConfig(shape="Electra-small", init="random"), "electra", 12),
    ):
        model = empty_student(student, ModelSource(str(tmp_path / family)), "classification", ("no", "yes"))
        assert count_parameters(model) == pytest.approx(millions * 1e6, rel=0.05)


def test_students_larger_than_the_memory_are_refused_before_they_are_made() -> None:
    config = BertConfig(num_hidden_layers=1000, hidden_size=32768, intermediate_size=131072, num_attention_heads=512)
    with pytest.raises(EnvironmentProblem, match=r"take about 48,000 GiB.*student\.shape"):
        random_model(config, "classification")
    config = BertConfig(num_hidden_layers=2, hidden_size=65536, intermediate_size=131072, num_attention_heads=512)
    assert empty_model(config, "classification").device.type == "meta"
