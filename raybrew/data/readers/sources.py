"""What a source text of `data` names: local files, a `save_to_disk` folder or a hub dataset, and readers for it.

Rows that were given in Python are files of a name by which they are known, whatever `data.format` says of the others.
Any other text that exists on disk is local. One that does not, but looks like a path, is an error; all others are hub
names.
`name:split` chooses a split or slice of a hub dataset or `save_to_disk` folder, as `datasets` writes them
(`imdb:train[:10%]`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from raybrew.config.data import FILE_ENDINGS
from raybrew.config.rows import table_name
from raybrew.data.readers.hub import HubName, load_folder, load_hub, parse_hub_name
from raybrew.data.readers.records import RowReader
from raybrew.errors import DataError
from raybrew.secrets import scrub

__all__ = ["DEFAULT_SPLITS", "Source", "format_of", "open_source", "resolve_source"]

#: Key of `data` -> the split that is read where the source has several and names none.
DEFAULT_SPLITS: Mapping[str, str] = MappingProxyType(
    {"train": "train", "eval": "validation", "test": "test", "unlabeled": "train"}
)

_TEXT_FORMATS = ("csv", "tsv", "jsonl", "conll")
_SPLIT_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:\[[^\[\]]*\])?"
_WITH_SPLIT = re.compile(rf"(?P<base>.+?):(?P<split>{_SPLIT_NAME}(?:\+{_SPLIT_NAME})*)", re.DOTALL)
#: Endings of files that are meant as files even though their format must be given.
_OTHER_ENDINGS = (".txt", ".gz", ".zip", ".xlsx")
#: First word of a file name -> what the file is for, to refuse a folder that mixes them.
_PURPOSES = MappingProxyType({"train": "train", "dev": "eval", "val": "eval", "valid": "eval", "validation": "eval",
                              "eval": "eval", "test": "test"})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """A resolved source: (path, format) of files, one `save_to_disk` folder (format `dataset`), or a hub dataset."""

    name: str
    files: tuple[tuple[Path, str], ...] = ()
    hub: HubName | None = None
    split: str | None = None
    default_split: str = "train"
    tried: Path = Path()
    """Where a hub name would have been a local file or folder."""


def resolve_source(text: str, data_format: str, key: str) -> Source:
    """What `text` of `data.<key>` names; looks at the disk, opens nothing. DataError names the absolute path tried."""
    base, split = text, None
    if table_name(text) is not None:
        if not _exists(text):
            raise DataError(f"rows that were given in Python lie no longer in {Path(text).absolute()}; give them again")
        return Source(f"data.{key}", ((Path(text).expanduser(), "arrow"),))
    if not _exists(text) and (found := _WITH_SPLIT.fullmatch(text)) is not None and "://" not in text:
        base, split = found["base"], found["split"]
    default = DEFAULT_SPLITS[key]
    if data_format != "hub" and _exists(base):
        files = _local_files(Path(base).expanduser(), data_format)
        if split is not None and files[0][1] != "dataset":
            raise DataError(
                f"{text}: a split (:{split}) goes with a save_to_disk folder or hub name; {base} is neither"
            )
        return Source(text, files, None, split, default)
    hub = parse_hub_name(base)
    if data_format != "hub" and (data_format != "auto" or hub is None or _looks_like_path(base)):
        raise _not_found(base, data_format)
    if hub is None:
        raise DataError(f"{base!r} is no hub name; examples: owner/name, owner/name/subset, imdb:train[:10%]")
    return Source(f"{hub}:{split or default}", (), hub, split or default, default, Path(base).absolute())


def open_source(
    source: Source, delimiter: str | None = None, header: Sequence[str] = (), encoding: str | None = None
) -> tuple[RowReader, ...]:
    """One reader for each file of `source`, or one for its dataset. Nothing is read yet.

    `delimiter` is that of CSV files, `header` names the columns of CSV and TSV files without such a line, `encoding` is
    that of all text files.
    """
    # pyarrow takes a quarter second, which plain resolving must not cost.
    from raybrew.data.readers.columnar import ArrowFile, DatasetRows, ParquetFile
    from raybrew.data.readers.conll import ConllFile
    from raybrew.data.readers.text import CsvFile, JsonlFile, TsvFile

    if source.hub is not None:
        load = functools.partial(load_hub, source.hub, source.split or source.default_split, source.tried)
        return (DatasetRows(source.name, load),)
    readers: Mapping[str, Callable[[Path], RowReader]] = {
        "csv": functools.partial(CsvFile, delimiter=delimiter, header=header, encoding=encoding),
        "tsv": functools.partial(TsvFile, header=header, encoding=encoding),
        "jsonl": functools.partial(JsonlFile, encoding=encoding),
        "conll": functools.partial(ConllFile, encoding=encoding),
        "parquet": ParquetFile,
        "arrow": ArrowFile,
    }
    opened: list[RowReader] = []
    for path, kind in source.files:
        if kind == "dataset":
            load = functools.partial(load_folder, path, source.split, source.default_split)
            opened.append(DatasetRows(source.name, load))
        else:
            opened.append(readers[kind](path))
            if table_name(path.name) is not None:
                opened[-1].name = source.name
    return tuple(opened)


def format_of(path: Path) -> str | None:
    """Format by the ending of a file name; None for unknown endings."""
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    kind = FILE_ENDINGS.get(Path(plain).suffix)
    return None if plain != name and kind not in _TEXT_FORMATS else kind


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL character, an unknown ~user
        return False


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~", "/")) or text.lower().endswith((*FILE_ENDINGS, *_OTHER_ENDINGS))


def _not_found(text: str, data_format: str) -> DataError:
    if "://" in text:
        return DataError(
            f"{scrub(text)}: rows are read from local or shared (NFS) files or the hub; copy the file first"
        )
    path = Path(text).expanduser().absolute()
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    if not hint and data_format == "auto" and not _looks_like_path(text):
        hint = ", and no hub name either (owner/name, owner/name/subset, optionally :split)"
    return DataError(f"no such file or folder: {path}{hint}")


def _local_files(path: Path, data_format: str) -> tuple[tuple[Path, str], ...]:
    known = ", ".join(FILE_ENDINGS)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            if data_format not in ("auto", "dataset"):
                raise DataError(f"{path.absolute()}: a save_to_disk folder, but data.format={data_format}; use dataset")
            return ((path, "dataset"),)
        if data_format != "dataset":
            return _files_of_folder(path, data_format)
        raise DataError(f"{path.absolute()}: no save_to_disk folder (it has neither dataset_dict.json nor state.json)")
    if data_format == "dataset":
        raise DataError(f"{path.absolute()}: a file, but data.format=dataset; a save_to_disk folder is expected")
    kind = format_of(path) if data_format == "auto" else data_format
    if kind is None:
        raise DataError(
            f"{path.absolute()}: unknown kind of file; known endings: {known} (text also .gz), or set data.format"
        )
    return ((path, kind),)


def _files_of_folder(path: Path, data_format: str) -> tuple[tuple[Path, str], ...]:
    """Data files of a folder by name. `.json` is left out: beside data it is mostly metadata."""
    found = [
        (entry, kind)
        for entry in sorted(path.iterdir())
        if entry.is_file()
        and not entry.name.startswith((".", "_"))
        and not entry.name.lower().removesuffix(".gz").endswith(".json")
        and (kind := format_of(entry)) is not None
        and data_format in ("auto", kind)
    ]
    if not found:
        known = ", ".join(FILE_ENDINGS)
        wanted = "data files" if data_format == "auto" else f"{data_format} files"
        raise DataError(
            f"{path.absolute()}: neither a save_to_disk folder nor one with {wanted} (known endings: {known})"
        )
    by_purpose: dict[str, str] = {}
    for entry, _ in found:
        purpose = _PURPOSES.get(re.split(r"[-_.]", entry.name.lower(), maxsplit=1)[0])
        if purpose is not None:
            by_purpose.setdefault(purpose, entry.name)
    if len(by_purpose) > 1:
        several = " and ".join(by_purpose.values())
        raise DataError(f"{path.absolute()}: holds {several}; name one file instead of the folder")
    return tuple(found)
