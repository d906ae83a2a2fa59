"""Shared by all tests: an environment without network, GPU or extra threads, and the data folder beside the checkout.

The environment is set on import, before any test module imports torch, transformers, wandb or ray, which read it once.
Values already set by the caller win, except the GPU and network switches, which have their own variables.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# How long an example takes depends on what else the machine does.
# The same cases each time, so that a change is judged by what it changes; RAYBREW_TEST_RANDOM=1 looks for new ones.
hypothesis.settings.register_profile(
    "raybrew", deadline=None, derandomize="RAYBREW_TEST_RANDOM" not in os.environ, database=None
)
hypothesis.settings.load_profile("raybrew")

REPO_ROOT = Path(__file__).resolve().parents[1]
SHARED = REPO_ROOT.parent / "shared"

GPU_SWITCH = "RAYBREW_TEST_GPU"
NETWORK_SWITCH = "RAYBREW_TEST_NETWORK"

DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "NO_COLOR": "1",
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
if os.environ.get(GPU_SWITCH) != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if os.environ.get(NETWORK_SWITCH) != "1":
    os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine or call cannot run, and say why."""
    if item.get_closest_marker("network") and os.environ.get(NETWORK_SWITCH) != "1":
        pytest.skip(f"needs the internet: set {NETWORK_SWITCH}=1")
    if item.get_closest_marker("gpu"):
        if os.environ.get(GPU_SWITCH) != "1":
            pytest.skip(f"needs CUDA: set {GPU_SWITCH}=1")
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA: torch finds no device")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Folder of the checkout."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`../shared/data` beside the checkout: real rows in many formats; the project must pass without it."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("needs the folder shared/data beside the checkout")
    return data
