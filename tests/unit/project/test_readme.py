"""The README says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import raybrew
from raybrew.cli.main import app
from raybrew.config import public
from raybrew.config.loading import load_experiment


def test_the_readme_shows_the_tree_as_it_is(repo_root: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## What is in this repository")[1].split("\n## ")[0]
    shown = set(re.findall(r"^      (\w+)/ ", tree, re.MULTILINE))
    packages = {path.parent.name for path in (repo_root / "raybrew").glob("*/__init__.py")}
    assert shown == packages
    for name in re.findall(r"^    (\w+)/ ", tree, re.MULTILINE):
        assert (repo_root / name).is_dir(), name


def test_the_readme_names_every_command_and_no_other(repo_root: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    use = readme.split("## Use")[1].split("\n## ")[0]
    shown = set(re.findall(r"^\| `(\w+)[ `]", use, re.MULTILINE))
    commands = {command.name for command in (*app.registered_commands, *app.registered_groups)}
    assert shown == commands
    used = set(re.findall(r"^    raybrew (\w+)", readme, re.MULTILINE))
    assert used <= commands


def test_the_experiment_in_the_readme_is_valid(repo_root: Path, tmp_path: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        load_experiment(path, check_files=False)


def test_the_experiment_in_python_in_the_readme_is_valid(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    section = readme.split("### From Python")[1].split("\n#")[0]
    made: list[raybrew.Experiment] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(raybrew, "distill", made.append)
    rows = [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}]
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], {"dataset": rows, "dev": rows})
    assert load_experiment(made[0].to_yaml("x.yaml")) == made[0]
    named = re.findall(r"\w+", " ".join(re.findall(r"`([A-Z]\w+(?:,\s\w+)*)`", section.split("or mappings")[0])))
    assert set(named) == {*public.__all__, "Student", "Store", "Sweep"}


def test_overrides_in_the_readme_are_valid(repo_root: Path, tmp_path: Path) -> None:
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nteacher: {model: some/model}\nstudent: {shape: T3}\n", encoding="utf-8")
    lines = re.findall(r"raybrew (?:distill|capture|finetune) experiment.yaml ((?:\S+=\S+ ?)+)", readme)
    assert lines
    for line in lines:
        load_experiment(path, line.split(), check_files=False)


@pytest.mark.parametrize("word", ["TODO", "FIXME"])
def test_nothing_is_left_open(repo_root: Path, word: str) -> None:
    found = [str(path) for path in (repo_root / "raybrew").rglob("*.py") if word in path.read_text(encoding="utf-8")]
    assert found == []
