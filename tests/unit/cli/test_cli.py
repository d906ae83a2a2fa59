"""The command line: what it may import, how it answers, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raybrew.cli.main import main

#: What takes seconds to import and has no part in asking for help.
HEAVY = ("torch", "ray", "transformers", "datasets", "sklearn", "scipy", "pandas", "plotly", "wandb", "pyarrow")


def run(*arguments: str) -> int:
    """Exit code of `raybrew ...` in this process."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sorted(m for m in sys.modules if '.' not in m)), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(found.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["distill", "--help"],
        ["list", "losses"],
        ["list", "shapes"],
        ["list", "matches"],
        ["validate", "experiments/sst2/sst2.yaml"],
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], repo_root: Path) -> None:
    code = f"""
import os
os.chdir({str(repo_root)!r})
from raybrew.cli.main import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert not imported_by(code) & set(HEAVY)


def test_show_imports_no_torch_ray_or_transformers(tmp_path: Path) -> None:
    run_folder = tmp_path / "runs" / "x" / "distill-1"
    run_folder.mkdir(parents=True)
    (run_folder / "identity.json").write_text('{"verb": "distill"}')
    code = f"""
from raybrew.cli.main import main
try:
    main(["show", {str(tmp_path / "runs")!r}])
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert not imported_by(code) & {"torch", "ray", "transformers", "sklearn", "plotly"}


def test_import_raybrew_is_light() -> None:
    assert not imported_by("import raybrew; raybrew.__version__; dir(raybrew)") & set(HEAVY)
    assert "torch" in imported_by("import raybrew; raybrew.distill")


def test_help_answers_soon() -> None:
    """Generous for a loaded machine: imports are what is really tested above."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "raybrew", "--help"], capture_output=True, check=True, timeout=60)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["distil"], 2),
        (["distill"], 2),
        (["distill", "--seed", "3"], 2),
        (["list", "lossses"], 2),
        (["distill", "none.yaml"], 3),
        (["validate", "none.yaml"], 3),
        (["show", "no-such-folder"], 1),
    ],
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == code
    assert "Traceback" not in capsys.readouterr().err


def test_init_writes_a_file_and_keeps_an_existing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "experiment.yaml"
    assert run("init", str(path)) == 0
    text = path.read_text()
    assert run("validate", "--no-files", str(path)) == 0
    path.write_text("name: mine\n")
    assert run("init", str(path)) == 3
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "name: mine\n"
    assert run("init", "--force", str(path)) == 0
    assert path.read_text() == text


def test_validate_checks_all_files_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: good\nteacher: {model: owner/teacher}\n")
    bad.write_text("name: bad\nteacher: {model: owner/teacher}\ntrain: {epoch: 1, seed: x}\n")
    assert run("validate", str(good), str(bad)) == 3
    shown = capsys.readouterr()
    assert "1 of 2 valid" in shown.out
    assert "train.epoch" in shown.err
    assert "train.seed" in shown.err
    assert run("validate", str(good), str(bad), "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert [entry["valid"] for entry in found] == [True, False]
    assert len(found[1]["problems"]) == 2
    assert run("validate", str(good), "train.seed=4") == 0


def test_every_list_names_what_the_configs_accept(capsys: pytest.CaptureFixture[str]) -> None:
    from typing import get_args

    from raybrew.catalog.layer_rules import LAYER_RULES
    from raybrew.cli.list import Family
    from raybrew.config import DistillConfig, KDLossConfig, MatchConfig, StudentConfig
    from raybrew.config.data import FORMATS

    listed = {}
    for family in Family:
        assert run("list", family.value, "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert all(row["summary"] for row in rows), family
        listed[family] = [row["name"] for row in rows]
    kinds, losses = KDLossConfig.model_fields["kind"].annotation, MatchConfig.model_fields["loss"].annotation
    named = get_args(get_args(kinds)[0]) + get_args(get_args(losses)[0])  # beside them: functions of one's own
    assert listed[Family.losses] == [*named, "distill.emd", "package.module:function"]
    assert listed[Family.formats] == list(FORMATS)
    projections = get_args(MatchConfig.model_fields["projection"].annotation)
    assert set(listed[Family.projections]) == set(projections)
    *shapes, own = listed[Family.shapes]
    assert own == "package.module:Name"
    assert all(StudentConfig(shape=shape) for shape in shapes)
    for rule in listed[Family.matches]:
        if rule in LAYER_RULES:
            DistillConfig(matches=(MatchConfig(loss="cos", layers=rule),))
        elif not rule.startswith(("[", "package.")):
            assert DistillConfig.model_validate({"matches": [rule]}).matches


def test_unexpected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    module = importlib.import_module("raybrew.cli.validate")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nobody's wish")

    monkeypatch.setattr(module, "load_experiment", broken)
    assert run("validate", "x.yaml") == 1
    assert "unexpected ZeroDivisionError: by nobody's wish" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["validate", "x.yaml", "--debug"])
