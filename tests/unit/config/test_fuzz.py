"""Whatever an experiment file or an override holds: an experiment, or one ConfigError in a length that people read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fuzz import FIXED, broken_experiment, broken_overrides
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.config.loading import load_experiment
from raybrew.config.space import space_cautions, space_notes
from raybrew.config.stages import method_notes
from raybrew.config.views import task_views
from raybrew.errors import ConfigError

REPO_ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((REPO_ROOT / "experiments").rglob("*.yaml"))
LONGEST_MESSAGE = 150_000


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the experiment files: broken ones lie beside what they extend."""
    folder = tmp_path_factory.mktemp("fuzz") / "experiments"
    shutil.copytree(REPO_ROOT / "experiments", folder, ignore=shutil.ignore_patterns("*.md", "*.py", "results"))
    return folder


def check(path: Path, overrides: list[str], back: Path) -> bool:
    """Whether it is an experiment; then all that is read off one can be, and its dump reads back equal."""
    try:
        experiment = load_experiment(path, overrides, check_files=True)
    except ConfigError as error:
        assert len(str(error)) < LONGEST_MESSAGE  # noqa: PT017 (it need not fail)
        return False
    space_notes(experiment)
    space_cautions(experiment)
    method_notes(experiment.distill, experiment.student)
    assert experiment.run_id("distill") != experiment.run_id("finetune")
    for view in task_views(experiment):
        view.experiment.run_id("finetune")
    back.write_text(experiment.to_yaml(), encoding="utf-8")
    assert load_experiment(back, check_files=False) == experiment
    return True


@settings(FIXED, max_examples=1000)
@given(data=st.data())
def test_broken_files(data: st.DataObject, experiments: Path, tmp_path: Path) -> None:
    path = data.draw(st.sampled_from(FILES))
    broken = experiments / path.parent.name / "broken.yaml"
    broken.write_bytes(data.draw(broken_experiment(path.read_text(encoding="utf-8"))))
    check(broken, [], tmp_path / "back.yaml")


@settings(FIXED, max_examples=1000)
@given(path=st.sampled_from(FILES), overrides=broken_overrides())
def test_broken_overrides(path: Path, overrides: list[str], tmp_path: Path) -> None:
    check(path, overrides, tmp_path / "back.yaml")


def test_files_that_are_whole_pass_the_same_check(tmp_path: Path) -> None:
    assert all(check(path, ["train.seed=3"], tmp_path / "back.yaml") for path in FILES[::6])
