"""What a fresh machine relies on: the lock file, the two make commands, the licence and the package's marker files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
TORCH_PIN = "2.13.0"
EXTRAS = ("dev", "bench", "int8", "mlflow", "onnx", "serve")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lock_lines() -> list[str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins_for(lock_lines: list[str], **environment: str) -> dict[NormalizedName, list[str]]:
    """Locked versions by package name, for this interpreter unless `environment` says otherwise."""
    pins: dict[NormalizedName, list[str]] = {}
    for line in lock_lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment or None):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pins.setdefault(canonicalize_name(requirement.name), []).append(specifier.version)
    return pins


def declared(project: dict[str, Any]) -> list[Requirement]:
    extras = project["project"]["optional-dependencies"]
    texts = [*project["project"]["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    return [Requirement(text) for text in texts]


def test_lock_pins_torch_exactly_and_for_every_platform(lock_lines: list[str]) -> None:
    assert [line for line in lock_lines if re.match(r"torch\b(?!-)", line)] == [f"torch=={TORCH_PIN}"]


def test_lock_holds_versions_only(lock_lines: list[str]) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert len(lock_lines) > 100
    for forbidden in (
        r"://",
        r" @ ",
        r"^\s*-",
        r"--",
        r"sha256",
        r"file:",
        r"(^|\s)[./~]",
        r"\.(com|org|io|net)\b",
        r"\+",
    ):
        assert not re.search(forbidden, text, re.MULTILINE), forbidden
    for line in lock_lines:
        requirement = Requirement(line)
        assert requirement.url is None, line
        assert not requirement.extras, f"pip refuses extras in a constraints file: {line}"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_lock_has_one_version_of_every_dependency_and_satisfies_its_range(
    python: str, platform: str, lock_lines: list[str], project: dict[str, Any]
) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": platform,
        "platform_system": {"linux": "Linux", "darwin": "Darwin"}[platform],
    }
    pins = pins_for(lock_lines, **environment)
    several = {name: versions for name, versions in pins.items() if len(versions) > 1}
    assert not several
    for requirement in declared(project):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (version,) = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), (str(requirement), version)


def test_lock_agrees_with_what_is_installed(lock_lines: list[str]) -> None:
    pins = pins_for(lock_lines)
    # Not all of sys.path: setuptools puts the packages it carries with it there, once something has imported it.
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    found_there = metadata.distributions(path=list(dict.fromkeys(places)))
    installed = {canonicalize_name(found.name): Version(found.version) for found in found_there}
    # `public` drops the local part: a CPU build calls itself 2.13.0+cpu.
    differing = {
        name: (str(installed[name]), version)
        for name, (version,) in pins.items()
        if name in installed and Version(installed[name].public) != Version(version)
    }
    assert len(pins.keys() & installed.keys()) > 50
    assert not differing, f"installed against locked (delete .venv/.installed* and run make again): {differing}"


def test_project_declares_what_the_readme_promises(project: dict[str, Any]) -> None:
    table = project["project"]
    assert table["requires-python"] == ">=3.10"
    assert table["license"] == "Apache-2.0"
    assert table["scripts"] == {"raybrew": "raybrew.cli.main:main"}
    assert set(table["optional-dependencies"]) == set(EXTRAS)
    names = [canonicalize_name(Requirement(text).name) for text in table["dependencies"]]
    assert len(names) == len(set(names))


def test_version_is_written_once_and_read_by_packaging(project: dict[str, Any]) -> None:
    from raybrew.version import __version__

    assert project["project"]["dynamic"] == ["version"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == ROOT / "raybrew" / "version.py"
    assert str(Version(__version__)) == __version__


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text.splitlines()[0]
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_package_is_marked_as_typed() -> None:
    assert (ROOT / "raybrew" / "py.typed").read_bytes() == b""


def test_changelog_has_an_unreleased_section() -> None:
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def run_make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # An outer `make test` hands its flags down in MAKEFLAGS.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False)


def dry_run(target: str, *arguments: str) -> str:
    """What `make target` would run on a machine where nothing is set up yet."""
    result = run_make("--dry-run", "--always-make", *arguments, target)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_make_demo_installs_from_the_lock_and_runs_the_demo() -> None:
    printed = dry_run("demo", "VENV=no-such-folder")
    assert "-m venv" in printed
    assert "pip install" in printed
    assert "-c constraints.txt -e '.'" in printed
    assert "no-such-folder/bin/raybrew demo" in printed


def test_make_test_runs_every_check_and_every_test_folder() -> None:
    printed = dry_run("test", "VENV=no-such-folder")
    assert "-c constraints.txt -e '.[dev]'" in printed
    steps = [
        "ruff check",
        "ruff format --check",
        "mypy",
        "lint-imports",
        "tests/unit tests/contracts tests/numerics tests/trajectories",
        "tests/devices",
        "tests/integration",
    ]
    positions = [printed.find(step) for step in steps]
    assert -1 not in positions, dict(zip(steps, positions, strict=True))
    assert positions == sorted(positions)


def test_make_names_the_interpreters_it_tried(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    result = run_make(f"VENV={venv}", "PYTHON=no-such-python", f"{venv}/bin/python")
    assert result.returncode != 0
    assert "Python 3.10 to 3.13" in result.stderr
    assert "no-such-python" in result.stderr
    assert not venv.exists()


def test_make_lock_asks_for_our_platforms_and_keeps_the_file_if_uv_fails(
    tmp_path: Path, project: dict[str, Any]
) -> None:
    (where,) = project["tool"]["uv"]["environments"]
    assert project["tool"]["uv"]["constraint-dependencies"] == [f"torch=={TORCH_PIN}"]
    for platform in ("linux", "darwin", "win32", "emscripten"):
        environment = {"sys_platform": platform, "python_full_version": "3.13.1"}
        assert Marker(where).evaluate(environment) is (platform in ("linux", "darwin"))
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "constraints.txt").write_text("kept==1.0\n", encoding="utf-8")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").touch()
    # uv as it writes: the environments again in each line, in an order of its own.
    lines = [
        "kept==1.0 ; python_full_version < '3.14' and sys_platform != 'emscripten' and sys_platform != 'win32'",
        "old==1.0 ; python_full_version < '3.11' and sys_platform != 'emscripten' and sys_platform != 'win32'",
        "mac==2.0 ; python_full_version < '3.14' and sys_platform == 'darwin'",
        "new==1.0 ; python_full_version >= '3.11' and python_full_version < '3.14' and sys_platform == 'linux'",
    ]
    uv = programs / "uv"
    uv.write_text('#!/bin/sh\nfor last; do :; done\ncat uv.txt > "$last"\nexit $(cat code)\n', encoding="utf-8")
    uv.chmod(0o755)
    (tmp_path / "uv.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (tmp_path / "code").write_text("1", encoding="utf-8")
    assert run_make("lock", folder=tmp_path).returncode != 0
    assert (tmp_path / "constraints.txt").read_text(encoding="utf-8") == "kept==1.0\n"
    (tmp_path / "code").write_text("0", encoding="utf-8")
    result = run_make("lock", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    comment, *written = (tmp_path / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert comment.startswith("# The versions raybrew is tested with")
    assert written == [
        "kept==1.0",
        "old==1.0 ; python_full_version < '3.11'",
        "mac==2.0 ; sys_platform == 'darwin'",
        "new==1.0 ; python_full_version >= '3.11' and sys_platform == 'linux'",
    ]
    assert not list(tmp_path.glob("constraints.txt.*"))


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "exec make test" in script.read_text(encoding="utf-8")


def test_every_layer_is_listed_once_and_ray_is_confined(project: dict[str, Any]) -> None:
    layers, ray = project["tool"]["importlinter"]["contracts"]
    names = re.findall(r"[a-z_]+", " ".join(layers["layers"]))
    assert len(names) == len(set(names))
    assert names[0] == "cli"
    assert names[-1] == "errors"
    assert layers["exhaustive"] is True
    assert ray["forbidden_modules"] == ["ray"]
    allowed = {line.split(" -> ")[0] for line in ray["ignore_imports"]}
    assert allowed == {
        "raybrew.jobs.**",
        "raybrew.loopback",
        "raybrew.nodes",
        "raybrew.runtime",
        "raybrew.store.capture",
        "raybrew.training.launch",
        "raybrew.sweeps",
        "raybrew.sweeps.**",
    }


def test_every_imported_package_is_a_dependency_of_ours(project: dict[str, Any]) -> None:
    # A development environment holds much that a user's does not, so a missing dependency only shows there.
    imported: dict[str, str] = {}
    for path in sorted((ROOT / "raybrew").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module]
            imported |= {name.partition(".")[0]: f"{path.relative_to(ROOT)}:{node.lineno}" for name in names}
    # An extra that no test needs is not installed here.
    known = {"mlflow": ["mlflow-skinny"], **metadata.packages_distributions()}
    extras = [text for name in ("int8", "mlflow", "onnx") for text in project["project"]["optional-dependencies"][name]]
    ours = {canonicalize_name(Requirement(text).name) for text in (*project["project"]["dependencies"], *extras)}
    others = {name: where for name, where in imported.items() if name not in sys.stdlib_module_names | {"raybrew"}}
    assert len(others) > 10
    missing = {
        name: where for name, where in others.items() if not ours & {canonicalize_name(d) for d in known.get(name, [])}
    }
    assert missing == {}
