"""Model cards: valid metadata and harmless Markdown whatever the names in them, and nothing that is not known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from raybrew.exports.card import model_card
from raybrew.exports.facts import CardFacts, Control, summary_of_task
from raybrew.records.sections import numbers
from raybrew.records.summary import RunSummary

SUMMARY: dict[str, Any] = {
    "verb": "distill",
    "name": "reviews",
    "run_id": "distill-0123456789",
    "seed": 3,
    "labels": ["negative", "positive"],
    "student": {
        "parameters": 14_350_000,
        "megabytes": 57.4,
        "layers": 4,
        "hidden": 312,
        "description": "bert, 4 layers x 312",
    },
    "teacher": {
        "model": "google-bert/bert-base-cased",
        "fingerprint": "f00dcafe",
        "parameters": 108_000_000,
        "metrics": {"accuracy": 0.93, "macro_f1": 0.925},
    },
    "control": {"run_id": "distill-control", "metrics": {"accuracy": 0.88}},
    "best": {"step": 100, "metric": "accuracy", "value": 0.91, "metrics": {"eval/accuracy": 0.91, "eval/rows": 872}},
    "steps": 200,
    "epochs": 2.0,
    "rows": {"train": 60_110, "unlabeled": 0, "eval": 872},
    "latency": {
        "device": "cpu (AMD EPYC 7763)",
        "machine": "8 x AMD EPYC 7763",
        "precision": "fp32",
        "threads": 1,
        "tokens": 13,
        "rounds": 5,
        "round": "f00d",
        "alone": True,
        "student": {"batch_1": 2.5, "batch_32": 0.75},
        "teacher": {"batch_1": 9.0, "batch_32": 4.5},
    },
    "distill": {"temperature": 8.0, "matches": ["hidden_mse even"]},
    "versions": {"raybrew": "0.1.0", "torch": "2.13.0"},
    "command": "raybrew distill 'my experiment.yaml' train.seed=3",
}
HOSTILE = [
    "---\nlicense: mit\n---",
    '"; rm -rf /',
    "a: b #c",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "a|b\n| c |",
    "```\n# out",
    "tab\tnull\0bell\a\u0085\u2028next",
    "&lt; & ünï 中文 😀",
    "*bold* _it_ `code` $x$ ~~no~~",
    "\ud800lone",
    "@someone https://example.org www.example.org",
    "name ##",
]


def card_of(values: dict[str, Any]) -> str:
    """The card of a summary, with what is known beside it."""
    control = values.get("control")
    beside = {name: values[name] for name in ("task", "labels", "license", "command", "versions", "compared", "config",
                                              "repository", "export") if values.get(name)}  # fmt: skip
    if control is not None:
        test = (control.get("test") or {}).get("metrics")
        beside["control"] = Control(control["run_id"], numbers(control["metrics"]), numbers(test))
    return model_card(CardFacts(RunSummary.read(values), **beside))


def metadata_of(card: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    data = yaml.safe_load(found[1])
    assert isinstance(data, dict)
    return data


def test_card_says_what_is_known() -> None:
    card = card_of(SUMMARY)
    assert metadata_of(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "google-bert/bert-base-cased",
        "tags": ["raybrew", "knowledge-distillation"],
    }
    assert "| metric | student | teacher | same student without teacher |" in card
    assert "| accuracy | 0.9100 | 0.9300 | 0.8800 |" in card
    assert "| macro\\_f1 |  | 0.9250 |  |" in card
    assert "eval/rows" not in card
    assert "Measured on 872 rows of data.eval" in card
    assert "13.3 % of the teacher's 108,000,000 parameters" in card
    assert "| latency | student | teacher |" in card
    assert "| batch 32 | 0.75 | 4.50 |" in card
    assert "on cpu (AMD EPYC 7763): 13 tokens, fp32, 1 CPU thread." in card
    beside = {**SUMMARY, "latency": {**SUMMARY["latency"], "alone": False}}
    assert "| latency" not in card_of(beside), "measured while other trials ran"
    assert "teacher store: f00dcafe" in card
    assert "| temperature | 8.0 |" in card
    assert "```sh\nraybrew distill 'my experiment.yaml' train.seed=3\n```" in card
    assert 'pipeline("text-classification", model=' in card
    assert "Labels, in the order of the outputs: negative, positive." in card
    assert card.endswith("\n")
    assert "None" not in card


def test_a_card_leads_with_rows_that_chose_nothing_and_tells_what_was_chosen() -> None:
    known = {
        "test": {"metric": "accuracy", "value": 0.89, "metrics": {"accuracy": 0.89}, "rows": 4000},
        "teacher": {**SUMMARY["teacher"], "test": {"metrics": {"accuracy": 0.925}, "rows": 4000}},
        "control": {**SUMMARY["control"], "test": {"metrics": {"accuracy": 0.87}}},
        "chosen": {"rows": 872, "checkpoints": 12, "configurations": 16},
        "compared": ["accuracy over seeds: +2.0 (+0.5 to +3.5): a gain"],
    }
    card = card_of(SUMMARY | known)
    first, second = card.index("| metric, data.test |"), card.index("| metric, data.eval |")
    assert first < second
    assert "| accuracy | 0.8900 | 0.9250 | 0.8700 |" in card
    assert "Measured on 4,000 rows of data.test, held out, not used for choosing." in card
    assert "Best of 16 configurations and best of 12 checkpoints, chosen on 872 rows of data.eval" in card
    assert "Accuracy over seeds" in card
    plain = card_of(SUMMARY | {"chosen": {"rows": 872, "checkpoints": 12}})
    assert "Best of 12 checkpoints, chosen on 872 rows of data.eval" in plain
    assert "data.test" not in plain


def test_the_card_of_one_task_tells_its_own_test_rows() -> None:
    whole = {
        "name": "both",
        "test": {"metrics": {"mean": 0.8, "a.accuracy": 0.9, "b.f1": 0.7}, "rows": 10},
        "teacher": {"metrics": {"a.accuracy": 0.95}, "members": {"a": {"model": "t"}},
                    "test": {"metrics": {"a.accuracy": 0.94}, "rows": 10}},
    }  # fmt: skip
    own = summary_of_task(RunSummary.read(whole), "a")
    assert own.test is not None
    assert own.test.metrics == {"accuracy": 0.9}
    assert own.teacher is not None
    assert own.teacher.test is not None
    assert (own.teacher.model, own.teacher.test.metrics) == ("t", {"accuracy": 0.94})
    assert summary_of_task(RunSummary.read({"name": "x"}), "a") == RunSummary.read({"name": "x: a"})


def test_the_hub_reads_the_metadata() -> None:
    data = ModelCard(card_of({**SUMMARY, "license": "apache-2.0"})).data
    assert data.license == "apache-2.0"
    assert data.base_model == "google-bert/bert-base-cased"
    assert data.pipeline_tag == "text-classification"


@pytest.mark.parametrize("key", sorted(SUMMARY))
@pytest.mark.parametrize("empty", [True, False])
def test_every_part_may_be_missing(key: str, empty: bool) -> None:
    summary = {**SUMMARY, key: None} if empty else {name: SUMMARY[name] for name in SUMMARY if name != key}
    card = card_of(summary)
    assert metadata_of(card)["library_name"] == "transformers"
    assert "None" not in card


def test_an_empty_summary_still_makes_a_card() -> None:
    card = card_of({})
    assert "## How to use" in card
    assert not re.search(r"## (Figures|Where|How it was)", card)


def test_a_finetuned_teacher_is_not_called_a_student() -> None:
    card = card_of({"verb": "finetune", "name": "teacher", "teacher": {"model": "bert-base-cased"}})
    assert "fine-tuned from bert-base-cased" in card
    assert "student" not in card.lower()
    assert metadata_of(card)["tags"] == ["raybrew"]


@pytest.mark.parametrize("absolute", [True, False])
def test_a_folder_is_no_hub_name_and_its_path_is_not_told(
    absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "runs" / "teacher") if absolute else "runs/teacher"
    card = card_of({**SUMMARY, "teacher": {"model": model}})
    assert "base_model" not in metadata_of(card)
    assert "- teacher: teacher\n" in card
    assert "runs" not in card
    card = card_of({**SUMMARY, "teacher": {"model": str(tmp_path / "finetune-0a1b" / "student")}})
    assert "- teacher: finetune-0a1b/student\n" in card


def check_hostile(text: str) -> None:
    summary = {
        **SUMMARY,
        "name": text,
        "license": text,
        "labels": [text, "b"],
        "student": {"description": text},
        "teacher": {"model": text, "fingerprint": text, "metrics": {text: 0.5}},
        "distill": {text: text},
        "command": text,
        "versions": {text: text},
    }
    card = card_of(summary)
    card.encode("utf-8")
    data = metadata_of(card)
    assert set(data) - {"base_model", "license"} == {"library_name", "pipeline_tag", "tags"}
    assert data["license"] == re.sub("[\ud800-\udfff]", "\ufffd", text)
    body = card.split("\n---\n", 1)[1]
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    # Headings are ours alone, every table row has as many cells as its header, and nothing is HTML, a link or code.
    titles = [line for line in outside.splitlines() if line.startswith("#")]
    assert len(titles) == 1 + 4
    assert not re.search(r"(?<!\\)://|(?<!\\)@|www\.", outside)
    assert "<" not in outside.replace("\n", "")
    assert not re.search(r"(?<!\\)[\[\]*]|(?<!\\)`(?!classify|\.)", outside.replace('`classify({"text": "one"', ""))
    for table in re.findall(r"(?:^\|.*\|\n?)+", outside, flags=re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1, table


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_text(text: str) -> None:
    check_hostile(text)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_any_name_stays_text(text: str) -> None:
    check_hostile(text)
