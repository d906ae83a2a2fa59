"""The README's parity table names tests that exist, in the files that it names them in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

#: A file by its path, a file beside the one before, a test of the file before; `path.py::test_a` names both.
_QUOTED = re.compile(r"`(?P<path>tests/[\w/]+\.py)?(?P<file>test_\w+\.py)?(?:::)?(?P<test>test_\w+)?`")


def named_tests(table: str, root: Path) -> list[tuple[Path, str | None]]:
    """(file, test in it or None) for each name in the table's last column."""
    found: list[tuple[Path, str | None]] = []
    for line in table.splitlines()[2:]:
        file: Path | None = None
        for name in _QUOTED.finditer(line.split("|")[-2]):
            if name["path"]:
                file = root / name["path"]
            elif name["file"]:
                assert file is not None, f"no folder before {name[0]}"
                file = file.parent / name["file"]
            elif name["test"] and (file is None or not file.is_file()):
                raise AssertionError(f"no file before {name[0]}")
            if file is None:
                continue
            if name["test"] and f"def {name['test']}(" not in file.read_text(encoding="utf-8"):
                # A name alone may be a file beside the one before.
                beside = file.parent / f"{name['test']}.py"
                found.append((beside, None) if not name["path"] and beside.is_file() else (file, name["test"]))
                continue
            found.append((file, name["test"]))
    return found


def test_tests_of_the_parity_table_exist(repo_root: Path) -> None:
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    table = text.partition("| feature of TextBrewer |")[2].partition("\n\n")[0]
    named = named_tests(table, repo_root)
    assert len(named) > 35
    missing = [
        f"{file.relative_to(repo_root)}::{test or ''}"
        for file, test in named
        if not file.is_file() or (test and f"def {test}(" not in file.read_text(encoding="utf-8"))
    ]
    assert not missing


def test_a_name_in_the_wrong_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_one(): ...\n")
    table = "| x |\n|---|---|\n| it | `tests/test_a.py::test_two` |"
    assert named_tests(table, tmp_path) == [(tmp_path / "tests" / "test_a.py", "test_two")]
    with pytest.raises(AssertionError, match="no file before"):
        named_tests("\n|---|\n| it | `test_two` |", tmp_path)
