"""Students and teachers whose tokenizers cut texts alike: token types, padded vocabularies, and positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import without_latency
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import ConfigError
from raybrew.models.cache import ModelCache
from raybrew.models.loading import ModelSource, auto_class, load_config, max_tokens
from raybrew.pipeline.objective import likely_objective
from raybrew.pipeline.reporter import QuietReporter
from raybrew.pipeline.resolve import resolve
from raybrew.pipeline.units import same_tokens
from raybrew.verbs.distill import tell_projections

pytestmark = pytest.mark.usefixtures("quick")

WORDS = ["ka", "mo", "ti", "re", "so", "lu", "ne", "fa", "bi", "du"]
NAMES = ("different", "same")
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
    "distilbert": {"n_layers": 1, "dim": 16, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0, "attention_dropout": 0.0},
}
SIZES["mpnet"] = SIZES["roberta"] = SIZES["bert"]
SIZES["deberta-v2"] = SIZES["bert"] | {"relative_attention": True, "pos_att_type": ["c2p"], "type_vocab_size": 0}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)


def make_model(
    folder: Path, family: str, task: str = "classification", seed: int = 0, inputs: bool = True, **config: Any
) -> str:
    """A random model with its tokenizer; without `inputs` the tokenizer gives no token types."""
    tokenizer = build_tokenizer([" ".join(WORDS)], folder, max_length=64)
    tokenizer.model_max_length = 10_000
    tokenizer.save_pretrained(folder)
    if not inputs:
        file = folder / "tokenizer_config.json"
        named = {"model_input_names": ["input_ids", "attention_mask"]}
        file.write_text(json.dumps(json.loads(file.read_text()) | named))
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: place for place, name in enumerate(NAMES)}}
    numbers = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        **SIZES[family],
        **labels,
    }
    torch.manual_seed(seed)
    model = auto_class(task).from_config(AutoConfig.for_model(family, **{**numbers, **config}))
    if family == "bert":
        model.base_model.embeddings.token_type_embeddings.weight.data.normal_()
    model.save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, count: int, words: int = 3, pair: bool = True) -> str:
    rng = np.random.default_rng(words)
    rows = []
    for place in range(count):
        row = {"text": " ".join(rng.choice(WORDS, words)), "label": NAMES[place % 2]}
        rows.append({**row, "text_pair": " ".join(rng.choice(WORDS, words))} if pair else row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def experiment_of(folder: Path, **sections: dict[str, Any]) -> Experiment:
    values: dict[str, Any] = {
        "name": "tokens",
        "data": {"train": str(folder / "train.jsonl"), "columns": {"text_pair": "text_pair"}},
        "teacher": {"model": str(folder / "teacher")},
        "student": {"model": str(folder / "student")},
        "train": {"epochs": 1, "batch_size": 4, "log_steps": 1, "threads": 1, "device": "cpu"},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local", "element_type": "float32"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return build_experiment(values)


def losses_of(result: raybrew.RunResult) -> list[float]:
    lines = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("student", ["distilbert", "bert"])
def test_live_teacher_reads_token_types_that_student_lacks(tmp_path: Path, student: str) -> None:
    make_model(tmp_path / "teacher", "bert", seed=1)
    make_model(tmp_path / "student", student, inputs=False)
    write_rows(tmp_path / "train.jsonl", 12)
    data = {"eval": write_rows(tmp_path / "eval.jsonl", 6, words=2)}
    matches = {"matches": [{"loss": "hidden_mse", "layers": "final"}]}
    found = {
        source: raybrew.distill(
            experiment_of(tmp_path, data=data, teacher={"source": source}, distill=matches), run_id=source, report=False
        )
        for source in ("auto", "live")
    }
    stored, live = losses_of(found["auto"]), losses_of(found["live"])
    assert (found["auto"].summary["distill"]["source"], len(stored)) == ("store", 3)
    assert stored == pytest.approx(live, rel=1e-4)
    assert found["auto"].metrics == found["live"].metrics
    types = {
        tuple(sorted(AutoTokenizer.from_pretrained(tmp_path / name)("ka", "mo"))) for name in ("teacher", "student")
    }
    assert len(types) == 2, "otherwise nothing was compared"


def test_live_teacher_without_token_types_gets_none(tmp_path: Path) -> None:
    make_model(tmp_path / "teacher", "bert", seed=1, inputs=False)
    make_model(tmp_path / "student", "bert")
    write_rows(tmp_path / "train.jsonl", 12)
    stored, live = (
        losses_of(raybrew.distill(experiment_of(tmp_path, teacher={"source": source}), run_id=source, report=False))
        for source in ("auto", "live")
    )
    assert stored == pytest.approx(live, rel=1e-4)


def test_tokenizers_differ_by_pieces_alone(tmp_path: Path) -> None:
    one = ModelSource(make_model(tmp_path / "one", "bert"))
    other = ModelSource(make_model(tmp_path / "other", "distilbert", inputs=False, vocab_size=200))
    assert same_tokens(ModelCache(), one, other)
    tokenizer = AutoTokenizer.from_pretrained(other.model)
    tokenizer.add_tokens(["zu"])
    tokenizer.save_pretrained(other.model)
    assert not same_tokens(ModelCache(), one, other)


@pytest.mark.parametrize("padded", ["teacher", "student", "both"])
def test_padded_vocabulary_trains_over_the_tokens(tmp_path: Path, padded: str) -> None:
    """Outputs of no token are as if they were not there: the losses are those of models without them."""
    write_rows(tmp_path / "train.jsonl", 12, pair=False)
    data = {"eval": write_rows(tmp_path / "eval.jsonl", 6, words=4, pair=False), "columns": {}}
    size = load_config(ModelSource(make_model(tmp_path / "teacher", "bert", "masked_lm", seed=1))).vocab_size
    make_model(tmp_path / "student", "bert", "masked_lm")
    sections = {
        "task": {"kind": "masked_lm", "max_length": 16},
        "data": data,
        "distill": {"kd_weight": 1.0, "hard_label_weight": 1.0},
        "train": {"weight_decay": 0.0},
    }
    plain = raybrew.distill(experiment_of(tmp_path, **sections), run_id="plain", report=False)
    for name in ("teacher", "student"):
        if padded in (name, "both"):
            model = auto_class("masked_lm").from_pretrained(tmp_path / name)
            model.resize_token_embeddings(size + 7, mean_resizing=False)
            model.get_output_embeddings().bias.data[size:] = 20.0  # they would win everywhere
            model.save_pretrained(tmp_path / name)
    other = raybrew.distill(experiment_of(tmp_path, **sections), run_id="padded", report=False)
    assert losses_of(other) == pytest.approx(losses_of(plain), rel=1e-5)
    assert other.metrics == pytest.approx(plain.metrics, rel=1e-5)
    student = AutoConfig.from_pretrained(other.student)
    assert student.vocab_size == size + (7 if padded != "teacher" else 0), "a padded student stays padded"
    rows = tmp_path / "masks.jsonl"
    rows.write_text(json.dumps({"text": "ka [MASK] ti"}) + "\n")
    found = raybrew.predict(experiment_of(tmp_path, **sections), str(rows), model=str(tmp_path / "student"))
    known = set(AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab())
    assert {guess["token"].strip() for guess in found[0]["masks"][0]} <= known


TOO_LONG = r"task\.max_length.*at most 20"
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 20},
    "distilbert": {"max_position_embeddings": 20},
    "roberta": {"max_position_embeddings": 21},
    "mpnet": {"max_position_embeddings": 22},
    "deberta-v2": {"max_position_embeddings": 20, "position_biased_input": True},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beyond_positions_are_one_error(tmp_path: Path, family: str) -> None:
    make_model(tmp_path / "teacher", family, **FAMILIES[family])
    make_model(tmp_path / "student", "distilbert", max_position_embeddings=128)
    write_rows(tmp_path / "train.jsonl", 8, words=30, pair=False)
    sections: dict[str, Any] = {"data": {"columns": {}}, "task": {"kind": "classification", "max_length": 64}}
    for verb in (raybrew.capture, raybrew.plan, raybrew.distill):
        with pytest.raises(ConfigError, match=TOO_LONG):
            verb(experiment_of(tmp_path, **sections))
    with pytest.raises(ConfigError, match=TOO_LONG):
        raybrew.distill(experiment_of(tmp_path, teacher={"source": "live"}, **sections))
    assert not list((tmp_path / "runs").rglob("*.partial"))
    fitting = experiment_of(tmp_path, **{**sections, "task": {"kind": "classification", "max_length": 20}})
    assert raybrew.capture(fitting).num_rows == 8


def test_evaluation_rows_beyond_positions_of_the_teacher(tmp_path: Path) -> None:
    make_model(tmp_path / "teacher", "bert", max_position_embeddings=20)
    make_model(tmp_path / "student", "distilbert", max_position_embeddings=128)
    write_rows(tmp_path / "train.jsonl", 8, pair=False)
    data = {"columns": {}, "eval": write_rows(tmp_path / "eval.jsonl", 8, words=30, pair=False)}
    for verb in (raybrew.capture, raybrew.plan, raybrew.distill):
        with pytest.raises(ConfigError, match=TOO_LONG):
            verb(experiment_of(tmp_path, data=data, task={"kind": "classification", "max_length": 64}))


@pytest.mark.parametrize(("width", "told"), [(8, True), (16, False)])
def test_projections_that_the_student_leaves_behind_are_told(tmp_path: Path, width: int, told: bool) -> None:
    teacher = ModelSource(make_model(tmp_path / "teacher", "bert"))
    write_rows(tmp_path / "train.jsonl", 4)
    shape = {"model": None, "shape": {"layers": 1, "hidden": width}}
    experiment = experiment_of(tmp_path, student=shape, distill={"matches": [{"loss": "pooled_cos"}]})
    heard: list[str] = []
    reporter = QuietReporter()
    reporter.say = heard.append  # type: ignore[method-assign]
    tell_projections(likely_objective(resolve(experiment).tasks[0], NAMES, teacher), reporter)
    assert bool(heard) == told
    assert not told or "pooled_cos" in heard[0]


def positions_of(config: PretrainedConfig) -> int:
    """The longest input that a model of this config runs on."""
    with torch.random.fork_rng(devices=[]):
        model = auto_class("classification").from_config(config).eval()
    longest = 0
    for length in range(1, 40):
        try:
            with torch.no_grad():
                model(input_ids=torch.full((1, length), 7), attention_mask=torch.ones(1, length, dtype=torch.int64))
        except (IndexError, RuntimeError):
            break
        longest = length
    return longest


#: All that run in so small a size.
RUNNING = """albert bert camembert data2vec-text deberta deberta-v2 distilbert electra ernie flaubert megatron-bert
    mpnet roberta roberta-prelayernorm squeezebert xlm xlm-roberta xlm-roberta-xl"""


@pytest.mark.parametrize("family", RUNNING.split())
def test_most_tokens_of_a_family_are_what_it_runs_on(family: str) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    names = {
        "n_layers": 1,
        "dim": 16,
        "n_heads": 2,
        "hidden_dim": 16,
        "emb_dim": 16,
        "embedding_size": 16,
        "pooler_hidden_size": 16,
    }
    config = AutoConfig.for_model(family, vocab_size=30, max_position_embeddings=24, pad_token_id=1)
    for name, value in (small | names).items():
        if hasattr(config, name):
            setattr(config, name, value)
    found = max_tokens(config)
    assert found is not None
    assert positions_of(config) == found
