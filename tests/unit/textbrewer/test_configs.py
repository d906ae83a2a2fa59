"""TrainingConfig, DistillationConfig, the maps and `register_new`."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import raybrew
from raybrew import DistillationConfig, TrainingConfig
from raybrew.errors import ConfigError
from raybrew.textbrewer import presets
from raybrew.textbrewer.presets import kd_loss, match_loss, temperature_of, weight_schedule

MATCH = {"layer_T": 8, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1}


def test_defaults_are_textbrewers() -> None:
    train, distill = TrainingConfig(), DistillationConfig()
    assert (train.gradient_accumulation_steps, train.ckpt_frequency, train.ckpt_epoch_frequency) == (1, 1, 1)
    assert (train.ckpt_steps, train.log_dir, train.output_dir, train.local_rank) == (None, None, "./saved_models", -1)
    assert (distill.temperature, distill.kd_loss_type, distill.kd_loss_weight, distill.hard_label_weight) == (
        4,
        "ce",
        1,
        0,
    )
    assert not distill.scale_by_temperature_squared
    assert distill.intermediate_matches == ()


def test_constructors_make_no_folder(tmp_path: Path) -> None:
    TrainingConfig(output_dir=tmp_path / "out", log_dir=tmp_path / "logs")
    assert list(tmp_path.iterdir()) == []


def test_from_dict_and_json_and_text(tmp_path: Path) -> None:
    values = {"temperature": 8, "temperature_scheduler": ["flsw", 1, 2], "intermediate_matches": [MATCH]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = DistillationConfig.from_json_file(tmp_path / "config.json")
    assert config == DistillationConfig.from_dict(values)
    assert config.temperature_scheduler == ("flsw", 1, 2)
    assert config.intermediate_matches[0].name == "hidden_mse.2-8"
    text = str(config)
    assert "temperature : 8\n" in text
    assert "layer_T : 8" in text
    assert repr(TrainingConfig()).startswith("TrainingConfig:\ngradient_accumulation_steps : 1\n")
    (tmp_path / "broken.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"broken.json: expected a JSON object, found list"):
        DistillationConfig.from_json_file(tmp_path / "broken.json")
    with pytest.raises(ConfigError, match=r"none.json: cannot be read"):
        TrainingConfig.from_json_file(tmp_path / "none.json")


def test_configs_stay_as_given() -> None:
    matches = [dict(MATCH, proj=["linear", 3, 4])]
    before = copy.deepcopy(matches)
    config = DistillationConfig(intermediate_matches=matches)
    assert matches == before
    matches[0]["weight"] = 7
    assert config.intermediate_matches[0].weight == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.temperature = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_all_problems_at_once_with_near_matches() -> None:
    with pytest.raises(ConfigError, match="did you mean 'temperature'") as caught:
        DistillationConfig(temprature=1, hard=2)  # type: ignore[call-arg]
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError) as caught:
        DistillationConfig(
            temperature=0,
            kd_loss_weight=-1,
            probability_shift="yes",  # type: ignore[arg-type]
            intermediate_matches=[
                {**MATCH, "layer_S": [1, 2, 3]},
                {**MATCH, "feature": "hiden"},
                {**MATCH, "proj": ["linear", 3]},
                {"layer_T": 1, "layr_S": 1},
                3,
            ],
        )
    text = str(caught.value)
    for part in (
        "temperature: given 0; allowed: a number, more than 0",
        "kd_loss_weight: given -1; allowed: a number, at least 0",
        "probability_shift: given 'yes'",
        "intermediate_matches.0.layer_S: given (1, 2, 3)",
        "intermediate_matches.1.feature: given 'hiden'; allowed: hidden, attention; did you mean 'hidden'?",
        "intermediate_matches.2.proj: given ['linear', 3]",
        "intermediate_matches.3.layr_S: unknown key (given 1)",
        "intermediate_matches.3.loss: required",
        "intermediate_matches.4: given 3; allowed: a dict",
    ):
        assert part in text
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(gradient_accumulation_steps=0, ckpt_steps=1.5, fp16="O1", fp16_opt_level="O9")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="excludes local_rank"):
        TrainingConfig(data_parallel=True, local_rank=0)


def test_validation_survives_optimised_python() -> None:
    code = "import raybrew\ntry:\n    raybrew.DistillationConfig(temperature=-1)\nexcept ValueError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "temperature: given -1" in done.stdout


def test_names_are_looked_up() -> None:
    with pytest.raises(ConfigError, match=r"kd_loss_type: given 'kll'; allowed: .*did you mean 'kl'"):
        kd_loss("kll", False)
    with pytest.raises(ConfigError, match=r"given 'hidden_mes'.*did you mean 'hidden_mse'"):
        match_loss("hidden_mes", "loss")
    with pytest.raises(ConfigError, match="flsw takes beta and gamma"):
        temperature_of(("flsw", 1))
    with pytest.raises(ConfigError, match=r"options of 'ce': given \{'beta': 1\}"):
        kd_loss(("ce", {"beta": 1}), False)
    assert weight_schedule("k", "none") is None
    linear = weight_schedule("k", "linear_decay")
    assert linear is not None
    assert linear(0.25) == 0.75
    imported, is_own = presets.MATCH_LOSS_MAP.find("raybrew.losses.features:cos", "loss")
    assert not is_own
    assert imported.__name__ == "cos"
    with pytest.raises(ConfigError, match="has no such function"):
        presets.MATCH_LOSS_MAP.find("raybrew.losses.features:none", "loss")


@pytest.fixture
def clean_maps() -> Any:
    maps = [value for value in vars(presets).values() if isinstance(value, presets.Preset)]
    assert len(maps) == 5
    yield
    for one in maps:
        one.added.clear()


@pytest.mark.usefixtures("clean_maps")
def test_register_new_and_maps() -> None:
    def l1(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return (student - teacher).abs().mean()

    def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        return ((student - teacher) / temperature).square().mean()

    def hot(beta: float) -> Callable[..., float]:
        return lambda student, teacher, base: base + beta

    raybrew.register_new("match_Loss", "my_l1", l1)  # TextBrewer's spelling
    raybrew.register_new("kd_loss", "my_kd", kd)
    raybrew.register_new("temperature_scheduler", "hot", hot)
    raybrew.WEIGHT_SCHEDULER["half"] = lambda progress: 0.5
    assert "my_l1" in raybrew.MATCH_LOSS_MAP
    assert {"fsp", "nst", "attention_ce"} <= set(raybrew.MATCH_LOSS_MAP)
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    term = match_loss("my_l1", "loss")[0](student, teacher, None)
    torch.testing.assert_close(term.sum / term.count, l1(student, teacher))
    loss, is_own, _ = kd_loss("my_kd", False)
    term = loss(student, teacher, None, temperature=2.0)
    assert not is_own
    torch.testing.assert_close(term.sum / term.count, kd(student, teacher, 2.0))
    rule, _ = temperature_of(("hot", 3))
    assert rule is not None
    assert rule(student, teacher, 4.0, None) == 7.0
    with pytest.raises(ConfigError, match="exists already"):
        raybrew.register_new("kd_loss", "ce", kd)
    with pytest.raises(ConfigError, match=r"no map 'kd_los'.*did you mean 'kd_loss'"):
        raybrew.register_new("kd_los", "x", kd)
    with pytest.raises(ConfigError, match="expected a function"):
        raybrew.register_new("kd_loss", "x", 3)  # type: ignore[arg-type]


def test_maps_give_means_as_textbrewer_does() -> None:
    student, teacher = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    wanted = ((student - teacher)[mask.bool()]).square().mean()
    torch.testing.assert_close(raybrew.MATCH_LOSS_MAP["hidden_mse"](student, teacher, mask), wanted)
    torch.testing.assert_close(raybrew.MATCH_LOSS_MAP["hidden_mse"](student, teacher, mask=mask), wanted)
    wanted = ((student - teacher) / 2).square().mean()
    torch.testing.assert_close(raybrew.KD_LOSS_MAP["mse"](student, teacher, 2), wanted)
    torch.testing.assert_close(raybrew.KD_LOSS_MAP["mse"](student, teacher, temperature=2), wanted)
    assert raybrew.PROJ_MAP["linear"](3, 4).weight.shape == (4, 3)
