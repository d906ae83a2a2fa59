"""Counting and showing parameters."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, DistilBertConfig
from transformers import DistilBertForSequenceClassification as DistilBert

from raybrew import utils
from raybrew.models.inspection import (
    count_parameters,
    describe,
    display_parameters,
    model_megabytes,
)

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


class Tied(nn.Module):
    """50 + 5 parameters in one matrix and two biases; the matrix is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 10, bias=False)
        self.second = nn.Sequential(nn.Linear(5, 10), nn.Linear(10, 2))
        self.second[0].weight = self.first.weight


@pytest.fixture
def bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=24, **SIZES))


def test_shared_parameters_count_once() -> None:
    assert count_parameters(Tied()) == 50 + 10 + 20 + 2
    assert model_megabytes(Tied()) == pytest.approx(82 * 4 / 1e6)
    assert model_megabytes(Tied().to(torch.bfloat16)) == pytest.approx(82 * 2 / 1e6)


def test_table_shows_every_level_with_shares_and_marks_what_is_shared() -> None:
    text, root = display_parameters(Tied())
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert list(rows) == ["name", "Tied", "first", "weight", "second", "0", "bias", "1"]
    assert rows["Tied"][1:5] == ["82", "100.00", "%", "0.00"]
    assert rows["first"][1:4] == ["50", "60.98", "%"]
    assert rows["second"][1:4] == ["32", "39.02", "%"]
    assert " ".join(rows["0"][5:]) == "(50 more, shared: counted above)"
    assert "shared" not in " ".join(rows["first"])
    second = root.children["second"].children["0"].children["weight"]
    assert (second.parameters, second.shared, second.bytes) == (0, 50, 0)
    assert (root.parameters, root.shared, root.bytes) == (82, 50, 82 * 4)
    assert len({len(line.split("%")[0]) for line in text.splitlines()[1:]}) == 1  # columns are aligned


def test_levels_below_the_last_are_left_out_but_counted() -> None:
    lines = {level: display_parameters(Tied(), max_level=level)[0].splitlines()[1:] for level in (0, 1, 2, 3)}
    assert [len(lines[level]) for level in lines] == [1, 3, 6, 10]
    assert display_parameters(Tied(), max_level=None)[0].splitlines()[1:] == lines[3]
    assert display_parameters(Tied(), max_level=1)[1].children["second"].parameters == 32


def test_a_state_dict_shows_the_same_numbers() -> None:
    model = BertForMaskedLM(BertConfig(vocab_size=40, **SIZES))
    by_model = display_parameters(model, max_level=2)[1]
    by_state = display_parameters(model.state_dict(), max_level=2)[1]
    assert by_model.parameters == by_state.parameters == count_parameters(model)
    assert by_model.shared >= 40 * 16
    assert list(by_model.children) == list(by_state.children)


def test_nothing_to_show_is_no_error() -> None:
    text, root = display_parameters(nn.Identity())
    assert root.parameters == 0
    assert "0.00 %" in text


def test_meta_models_are_counted_too(bert: BertForSequenceClassification) -> None:
    with torch.device("meta"):
        empty = Tied()
    assert display_parameters(empty)[1].parameters == count_parameters(empty) == 82


def test_raybrew_utils_has_the_name_that_scripts_use_and_loads_no_torch() -> None:
    result, _ = utils.display_parameters(nn.Linear(2, 3), max_level=3)
    rows = [line.split()[:2] for line in result.splitlines()[1:]]
    assert rows == [["Linear", "9"], ["weight", "6"], ["bias", "3"]]
    code = "import sys, raybrew.utils; print('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.strip() == "False"


def test_description_names_the_sizes_of_each_family(bert: BertForSequenceClassification) -> None:
    assert describe(bert) == {
        "architecture": "BertForSequenceClassification",
        "layers": 2,
        "hidden": 16,
        "heads": 2,
        "feed_forward": 32,
        "vocabulary": 40,
        "parameters": count_parameters(bert),
        "megabytes": round(count_parameters(bert) * 4 / 1e6, 2),
        "description": "bert, 2 layers x 16, 2 heads, feed-forward 32",
    }
    distilbert = DistilBert(DistilBertConfig(vocab_size=40, n_layers=1, dim=8, n_heads=2, hidden_dim=12))
    facts = describe(distilbert)
    assert [facts[name] for name in ("layers", "hidden", "heads", "feed_forward")] == [1, 8, 2, 12]
