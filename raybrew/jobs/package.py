"""The folder that a job takes along: which files, how large, as one zip file that is the same for the same content.

Left out, as by `ray job submit --working-dir .`: what `.gitignore` and `.rayignore` files name (RAY_RUNTIME_ENV_IGNORE_
GITIGNORE=1: only the latter), .git, .venv, venv and __pycache__.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec

from raybrew.errors import EnvironmentProblem

__all__ = ["MAX_BYTES", "PackedFiles", "find_files", "write_zip"]

#: What Ray's Jobs API takes at most, compressed.
MAX_BYTES = 100 * 2**20
#: Nothing that compresses to MAX_BYTES is larger than this in practice; more is not even tried.
_HOPELESS_BYTES = 20 * MAX_BYTES
_ALWAYS_LEFT_OUT = (".git", ".venv", "venv", "__pycache__")
_SHOWN = 5
#: Of every file in a zip, which else would differ each time that a file is touched.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class PackedFiles:
    """Files below `folder` that a job takes along, by their names relative to it, with their sizes."""

    folder: Path
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Of all files, before compression."""
        return sum(self.sizes.values())

    def has(self, path: Path) -> bool:
        """Whether the file `path`, or all that there is in the folder `path`, is among them."""
        name = os.path.relpath(path.absolute(), self.folder).replace(os.sep, "/")
        if path.is_dir():
            found = (each for each in path.rglob("*") if each.is_file())
            below = [each for each in found if not {*_ALWAYS_LEFT_OUT} & {*each.relative_to(path).parts}]
            return bool(below) and all(self.has(each) for each in below)
        return name in self.sizes

    def largest(self) -> str:
        """The largest files in words: `data/train.csv (80.1 MiB), ...`."""
        ordered = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in ordered[:_SHOWN])


def find_files(folder: Path, leave_out: Collection[Path] = (), excludes: Sequence[str] = ()) -> PackedFiles:
    """All files of `folder` that are not ignored, match none of `excludes`, nor lie in one of the folders `leave_out`.

    `excludes` are written as lines of a .gitignore file.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise EnvironmentProblem(f"{folder}: no such folder; the job takes one along")
    use_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    names = ((".gitignore",) if use_gitignore else ()) + (".rayignore",)
    rules = (("", GitIgnoreSpec.from_lines(excludes)),)
    without = {os.path.realpath(path) for path in leave_out}
    return PackedFiles(folder, dict(sorted(_walk(folder, "", names, rules, without, ()))))


_Rules = tuple[tuple[str, GitIgnoreSpec], ...]


def _walk(
    folder: Path, prefix: str, names: tuple[str, ...], rules: _Rules, without: set[str], above: tuple[str, ...]
) -> Iterator[tuple[str, int]]:
    real = os.path.realpath(folder)
    if real in without or real in above:  # a link to a folder that it lies in has no end
        return
    for name in names:
        file = folder / name
        if file.is_file():
            spec = GitIgnoreSpec.from_lines(file.read_text(encoding="utf-8", errors="replace").splitlines())
            rules = (*rules, (prefix, spec))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be read ({error.strerror}); name it in .rayignore") from error
    for entry in entries:
        name = f"{prefix}{entry.name}"
        if entry.name in _ALWAYS_LEFT_OUT:
            continue
        is_folder = entry.is_dir()
        asked = f"{name}/" if is_folder else name
        if any(spec.match_file(asked.removeprefix(where)) for where, spec in rules):
            continue
        if is_folder:
            yield from _walk(Path(entry.path), f"{name}/", names, rules, without, (*above, real))
        elif entry.is_file():  # neither a socket nor a link to nothing
            yield name, entry.stat().st_size


def write_zip(files: PackedFiles, target: Path, extra: Mapping[str, str | Path]) -> int:
    """Write all `files`, and the texts and further files `extra` by name, to the zip file `target`; its size.

    EnvironmentProblem names the largest files where it would be more than the Jobs API takes.
    """
    if files.bytes > _HOPELESS_BYTES:
        raise _too_large(files, f"{files.bytes / 2**20:.0f} MiB before compression")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(extra.items()):
            if isinstance(text, str):
                archive.writestr(_entry(name, 0o644), text)
        further = {name: path for name, path in sorted(extra.items()) if isinstance(path, Path)}
        for name, path in ({name: files.folder / name for name in files.sizes} | further).items():
            try:
                mode = stat.S_IMODE(path.stat().st_mode)
                with path.open("rb") as source, archive.open(_entry(name, mode), "w", force_zip64=True) as packed:
                    shutil.copyfileobj(source, packed, 2**20)
            except OSError as error:
                raise EnvironmentProblem(f"{path} cannot be read ({error.strerror}); name it in .rayignore") from error
            if archive.fp is not None and archive.fp.tell() > MAX_BYTES:
                raise _too_large(files, f"more than {MAX_BYTES // 2**20} MiB compressed")
    return target.stat().st_size


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (stat.S_IFREG | mode) << 16
    return info


def _too_large(files: PackedFiles, how: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{files.folder}: {len(files.sizes)} files are {how}, and Ray takes at most {MAX_BYTES // 2**20} MiB; name "
        "what the job does not read in .rayignore, and put large data where all nodes see it. The largest: "
        f"{files.largest()}"
    )
