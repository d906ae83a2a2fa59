"""The tables of losses, projections and schedules: light to import, complete, read-only."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES, TEMPERATURES, LossEntry
from raybrew.catalog.projections import PROJECTIONS, SCHEDULES
from raybrew.losses.term import Per

ALL_LOSSES = {**KD_LOSSES, **MATCH_LOSSES, **TEMPERATURES}
FUNCTIONS = {**PROJECTIONS, **SCHEDULES}


def test_everything_textbrewer_has_is_there() -> None:
    assert {"ce", "mse"} <= set(KD_LOSSES)
    assert {"hidden_mse", "cos", "pkd", "fsp", "gram", "mmd", "nst"} <= set(MATCH_LOSSES)
    assert {"attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"} <= set(MATCH_LOSSES)
    assert set(TEMPERATURES) == {"constant", "flsw", "cwsm"}
    assert set(PROJECTIONS) == {"linear", "relu", "tanh"}
    assert {"linear_decay", "linear_growth"} <= set(SCHEDULES)


def test_tables_import_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, raybrew.losses, raybrew.catalog.losses, raybrew.catalog.projections, raybrew.distillers.schedules;"
        "print(sorted({'torch', 'numpy', 'scipy', 'ray', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_rows_load_and_say_what_they_are(name: str) -> None:
    entry = ALL_LOSSES[name]
    function = entry.load()
    assert function.__name__ == entry.name
    assert function.__name__ in sys.modules[function.__module__].__all__
    assert function.__doc__
    assert Per(entry.per) in Per
    assert entry.needs in ("logits", "pooled", "hidden", "attention", "attention_probs", "qkv")
    assert 0 < len(entry.summary) <= 100
    assert "\n" not in entry.summary
    assert list(inspect.signature(function).parameters)[:2] == ["student", "teacher"]
    assert "mask" in inspect.signature(function).parameters


@pytest.mark.parametrize("name", KD_LOSSES)
def test_kd_losses_share_one_signature(name: str) -> None:
    entry = KD_LOSSES[name]
    parameters = inspect.signature(entry.load()).parameters
    assert {"temperature", "class_mask", "scale_by_temperature_squared"} <= set(parameters)
    assert parameters["scale_by_temperature_squared"].default is False
    assert entry.temperature_power in (1, 2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_load(name: str) -> None:
    assert FUNCTIONS[name].load().__name__ == FUNCTIONS[name].name == name
    assert FUNCTIONS[name].summary


def test_aliases_are_the_same_row() -> None:
    assert MATCH_LOSSES["fsp"] is MATCH_LOSSES["gram"]
    assert MATCH_LOSSES["nst"] is MATCH_LOSSES["mmd"]


@pytest.mark.parametrize("table", [KD_LOSSES, MATCH_LOSSES, TEMPERATURES, PROJECTIONS, SCHEDULES])
def test_tables_are_read_only(table: dict[str, LossEntry]) -> None:
    with pytest.raises(TypeError):
        table["mine"] = next(iter(table.values()))
