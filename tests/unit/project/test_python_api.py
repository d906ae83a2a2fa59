"""What scripts and notebooks take: runs and experiments by name of a file, and how objects show themselves."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import raybrew
import raybrew.textbrewer
from raybrew.errors import ConfigError, RunError
from unit.reports_helpers import make_run


@pytest.mark.parametrize("package", [raybrew, raybrew.textbrewer])
def test_every_listed_name_loads(package: ModuleType) -> None:
    assert dir(package) == package.__all__
    assert len(package.__all__) > 15
    for name in package.__all__:
        assert getattr(package, name) is package.__dict__[name], name
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = package.distil


def test_an_experiment_from_a_file_is_the_one_that_commands_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nteacher: {model: owner/<b>}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no such folder"):
        raybrew.Experiment.from_yaml(path)
    experiment = raybrew.Experiment.from_yaml(path, ["train.seed=4"], check_files=False)
    assert experiment == raybrew.load_experiment(path, ["train.seed=4"], check_files=False)
    page = experiment._repr_html_()
    assert "seed: 4" in page
    assert "owner/&lt;b&gt;" in page


def test_a_run_from_its_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path, accuracy=0.875)
    run = raybrew.Run.load(folder)
    assert run == raybrew.Run.load(tmp_path), "the only one below"
    assert run.status == "done"
    assert run.metrics["accuracy"] == pytest.approx(0.875)
    assert run.student == folder / "student"
    history = run.history()
    assert set(history["kind"]) == {"train", "eval"}
    assert history["step"].is_monotonic_increasing
    assert run.record.run_id in run._repr_html_()


def test_a_run_that_has_not_finished(tmp_path: Path) -> None:
    run = raybrew.Run.load(make_run(tmp_path, done=False))
    assert run.summary == {}
    assert run.status == "running or interrupted"
    assert run.metrics["accuracy"] > 0


def test_one_run_is_wanted(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0)
    make_run(tmp_path, seed=1)
    with pytest.raises(RunError, match="one run is wanted"):
        raybrew.Run.load(tmp_path)
    with pytest.raises(RunError, match="no folder"):
        raybrew.Run.load(tmp_path / "none")


def test_stored_results_and_jobs_load_without_torch_and_ray() -> None:
    code = "import sys, raybrew; raybrew.Run, raybrew.Sweep, raybrew.JobHandle, raybrew.submit, raybrew.Experiment\n"
    code += "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["plan", "capture", "distill", "finetune", "sweep", "submit", "doctor"])
def test_functions_are_typed_and_documented(name: str) -> None:
    function = getattr(raybrew, name)
    assert inspect.getdoc(function)
    signature = inspect.signature(function)
    assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values())
    assert signature.return_annotation is not inspect.Signature.empty
