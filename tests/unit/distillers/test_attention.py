"""Students matched with attention, relations, pooled outputs: from an experiment file to a folder, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_teacher import make_rows, make_teacher

import raybrew
from raybrew.config.loading import build_experiment
from raybrew.errors import ConfigError, DataError, LossError, ModelError, StoreError
from raybrew.models.loading import load_model, load_tokenizer
from raybrew.pipeline.reporter import LineReporter
from raybrew.store.listing import list_stores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_teacher(folder / "teacher")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in make_rows(24).select(["text", "label"]).to_pylist():
            file.write(json.dumps(row) + "\n")
    return folder


def experiment(folder: Path, distill: dict[str, Any], **sections: dict[str, Any]) -> Any:
    values: dict[str, Any] = {
        "name": "attention",
        "data": {"train": str(folder / "rows.jsonl")},
        "teacher": {"model": str(folder / "teacher")},
        "student": {"shape": {"layers": 1, "hidden": 16, "heads": 2}},
        "distill": distill,
        "train": {"epochs": 2, "batch_size": 8, "log_steps": 3, "threads": 1, "launcher": "local", "device": "cpu"},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
    }
    for name, section in sections.items():
        values[name] = values[name] | section
    return build_experiment(values)


def losses_of(result: Any) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name.startswith("loss/")}
        for record in records
        if record["kind"] == "train"
    ]


#: Every kind of match that is not between hidden states, and what it asks of the teacher beside the logits.
MATCHES = {
    "attention_mse": ({"loss": "attention_mse"}, ["attention.02"]),
    "attention_ce_mean": ({"loss": "attention_ce_mean"}, ["attention.02"]),
    "attention_probs_mse": ({"loss": "attention_probs_mse"}, ["attention_probs.02"]),
    "minilm": (
        {"loss": "relation_kl", "layers": "final", "relations": ["attention", "value"]},
        ["key.02", "query.02", "value.02"],
    ),
    "minilm_v2": ({"loss": "relation_kl", "relation_heads": 4}, ["key.02", "query.02", "value.02"]),
    "pooled_mse": ({"loss": "pooled_mse", "weight": 2.0}, ["pooled"]),
    "pooled_cos": ({"loss": "pooled_cos"}, ["pooled"]),
}


@pytest.mark.parametrize("name", MATCHES)
def test_the_store_trains_like_the_live_teacher(folder: Path, name: str) -> None:
    match, signals = MATCHES[name]
    exact = {"element_type": "float32"}
    found = {}
    for source in ("auto", "live", "store"):
        result = raybrew.distill(
            experiment(folder, {"matches": [match]}, teacher={"source": source}, store=exact), report=False
        )
        assert result.summary["distill"]["source"] == ("live" if source == "live" else "store")
        found[source] = losses_of(result)
    (entry,) = list_stores(folder / "runs" / "store")
    assert entry.store is not None
    assert {f"signals/{signal}.float32" for signal in signals} <= set(entry.store.manifest["signals"])
    assert len(found["auto"]) == 2
    assert found["auto"] == found["store"]
    for stored, live in zip(found["auto"], found["live"], strict=True):
        assert any(key.startswith(f"loss/{match['loss']}") and value > 1e-6 for key, value in stored.items())
        assert stored == pytest.approx(live, rel=1e-4, abs=1e-7)


def test_one_match_by_name_or_spelt_out_is_one_run(folder: Path) -> None:
    named = experiment(folder, {"matches": ["L1_attention_mse", "L1_hidden_mse"], "kd_loss": {"kind": "js"}})
    result = raybrew.distill(named, report=False)
    assert {"loss/kd", "loss/attention_mse.1-2", "loss/hidden_mse.0-0", "loss/hidden_mse.1-2"} <= set(
        losses_of(result)[0]
    )
    spelt = [{"loss": "attention_mse"}, {"loss": "hidden_mse", "layers": "even"}]
    same = raybrew.distill(experiment(folder, {"matches": spelt, "kd_loss": {"kind": "js"}}), report=False)
    assert same.already_done
    assert same.path == result.path


def test_signals_of_the_store_section_are_captured(folder: Path) -> None:
    names = ["attention.01", "attention_probs.02", "value.01", "pooled", "hidden.00"]
    store = raybrew.capture(experiment(folder, {}, store={"signals": names, "path": str(folder / "extra")}))
    assert {signal.name for signal in store.signals} == {"logits", *names}
    with pytest.raises(ModelError, match=r"attention.03 was asked for, but .* has layers 1 to 2"):
        raybrew.capture(experiment(folder, {}, store={"signals": ["attention.03"]}))


def test_heads_and_depths_that_do_not_fit_are_refused_before_training(folder: Path) -> None:
    heads = {"student": {"shape": {"layers": 1, "hidden": 16, "heads": 4}}}
    with pytest.raises(LossError, match=r"attention_mse.1-2: the student has 4 attention heads, the teacher 2"):
        raybrew.distill(experiment(folder, {"matches": ["L1_attention_mse"]}, **heads), report=False)
    with pytest.raises(ConfigError, match=r"given 'L3_attention_mse', which is for students of 3 layers, but .* has 1"):
        raybrew.distill(experiment(folder, {"matches": ["L3_attention_mse"]}), report=False)


def test_rows_the_teacher_cannot_compute_are_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    source = make_teacher(tmp_path / "teacher")
    model, tokenizer = load_model(source, "classification"), load_tokenizer(source)
    model.bert.embeddings.word_embeddings.weight.data[tokenizer.convert_tokens_to_ids("sune")] = float("nan")
    model.save_pretrained(source.model)
    texts = [f"kola {number}" for number in range(20)]
    texts[4], texts[11] = "sune kola", "mati sune"
    for name, part in (("rows", texts[:10]), ("more", texts[10:])):
        with (tmp_path / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, text in enumerate(part):
                file.write(json.dumps({"text": text, "label": number % 3}) + "\n")
    poisoned = {
        "data": {"train": str(tmp_path / "rows.jsonl"), "unlabeled": str(tmp_path / "more.jsonl")},
        "teacher": {"model": source.model},
        "store": {"path": str(tmp_path / "store")},
    }
    skip = poisoned | {"data": poisoned["data"] | {"on_bad_row": "skip"}}
    matches = {"matches": [{"loss": "attention_mse"}]}
    with pytest.raises(StoreError, match=r"logits: the teacher gives 6 of 60 .* in 2 rows, the first being"):
        raybrew.distill(experiment(folder, matches, **poisoned), report=False)
    said: list[str] = []
    result = raybrew.distill(experiment(folder, matches, **skip), report=False, reporter=LineReporter(said.append))
    assert result.summary["rows"] == {"train": 9, "unlabeled": 9, "eval": 0}
    assert "left out 2 rows that the teacher could not compute" in said
    assert sum("the teacher gives NaN" in line for line in said) == 2
    assert all(value == value for losses in losses_of(result) for value in losses.values())  # no NaN
    # The store has them set aside from now on, which is an error again where it was not asked for.
    for source_kind in ("auto", "store"):
        strict = poisoned | {"teacher": poisoned["teacher"] | {"source": source_kind}}
        with pytest.raises(DataError, match=r"2 rows were set aside, .*on_bad_row=skip leaves them out"):
            raybrew.distill(experiment(folder, matches, **strict), report=False)
