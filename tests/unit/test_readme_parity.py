"""The README's parity table names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_tests_of_the_parity_table_exist(repo_root: Path) -> None:
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    table = text.partition("| feature of TextBrewer |")[2].partition("\n\n")[0]
    files = {path.name: path.read_text(encoding="utf-8") for path in (repo_root / "tests").rglob("test_*.py")}
    named_files = set(re.findall(r"(?:[\w/]+/)?(test_\w+\.py)", table))
    paths = re.findall(r"`(tests/[\w/]+\.py)", table)
    names = set(re.findall(r"(?<![\w/])(test_\w+)(?!\w|\.py)", table))
    assert len(paths) > 8
    assert len(names) > 15
    assert all((repo_root / path).is_file() for path in paths)
    assert named_files <= set(files)
    everything = "\n".join(files.values())
    assert not {name for name in names if f"def {name}(" not in everything}
