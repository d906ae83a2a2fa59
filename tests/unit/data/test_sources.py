"""What a source text names, which files are read, and what is said when there is nothing to read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raybrew.data.readers.hub import LEGACY_NAMES, HubName, load_hub, parse_hub_name
from raybrew.data.readers.sources import format_of, open_source, resolve_source
from raybrew.errors import DataError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "repository", "subset", "split"),
    [
        ("owner/name", "owner/name", None, "train"),
        ("owner/name:test", "owner/name", None, "test"),
        ("owner/name/subset", "owner/name", "subset", "train"),
        ("owner/name/subset:train[:10%]", "owner/name", "subset", "train[:10%]"),
        ("owner/name:train[5:10]+test[-3:]", "owner/name", None, "train[5:10]+test[-3:]"),
        ("glue/sst2", "nyu-mll/glue", "sst2", "train"),
        ("glue/mnli:validation_matched", "nyu-mll/glue", "mnli", "validation_matched"),
        ("nyu-mll/glue/sst2", "nyu-mll/glue", "sst2", "train"),
        ("imdb", "stanfordnlp/imdb", None, "train"),
        ("imdb:train[:10%]", "stanfordnlp/imdb", None, "train[:10%]"),
        ("facebook/xnli/zh", "facebook/xnli", "zh", "train"),
    ],
)
def test_hub_names(text: str, repository: str, subset: str | None, split: str) -> None:
    source = resolve_source(text, "auto", "train")
    assert source.hub == HubName(repository, subset)
    assert source.split == split
    assert source.files == ()


@pytest.mark.parametrize(("key", "split"), [("train", "train"), ("eval", "validation"), ("unlabeled", "train")])
def test_default_splits(key: str, split: str) -> None:
    assert resolve_source("owner/name", "auto", key).split == split


def test_legacy_names_lead_to_owned_repositories() -> None:
    assert LEGACY_NAMES
    for old, new in LEGACY_NAMES.items():
        assert parse_hub_name(old) == HubName(new)
        assert parse_hub_name(new) == HubName(new)
        assert "/" not in old
        assert new.endswith(f"/{old}")


@pytest.mark.parametrize("text", ["", "a b/c", "owner/", "/name", "a/b/c/d", "nothing-known", "owner/näme", "a//b"])
def test_what_is_no_hub_name(text: str) -> None:
    assert parse_hub_name(text) is None
    with pytest.raises(DataError, match="no hub name"):
        resolve_source(text, "hub", "train")


@pytest.mark.parametrize(
    ("name", "data_format"),
    [
        ("a.csv", "csv"),
        ("a.CSV.GZ", "csv"),
        ("a.tsv.gz", "tsv"),
        ("a.b.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.arrow", "arrow"),
        ("a.parquet.gz", None),
        ("a.txt", None),
        ("csv", None),
        ("a.gz", None),
    ],
)
def test_format_by_ending(name: str, data_format: str | None) -> None:
    assert format_of(Path(name)) == data_format


@pytest.mark.parametrize(
    "text",
    ["no.csv", "folder/no.jsonl.gz", "./no", "../no/such", "~/no-such-raybrew-file", "no.txt", "no.parquet:train"],
)
def test_missing_paths_are_named_absolutely(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        resolve_source(text, "auto", "train")
    expected = Path(text.removesuffix(":train")).expanduser().absolute()
    assert f"no such file or folder: {expected}" in str(caught.value)


def test_a_format_makes_a_hub_like_name_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=str(tmp_path / "owner/name")):
        resolve_source("owner/name", "csv", "train")


def test_near_names_in_the_folder_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl.gz").touch()
    with pytest.raises(DataError, match=r"did you mean train\.jsonl\.gz\?"):
        resolve_source(str(tmp_path / "train.jsonl"), "auto", "train")


def test_a_single_unknown_word_is_neither_file_nor_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        resolve_source("mydata", "auto", "train")
    assert str(tmp_path / "mydata") in str(caught.value)
    assert "owner/name" in str(caught.value)


def test_urls_are_refused() -> None:
    with pytest.raises(DataError, match="copy the file first"):
        resolve_source("s3://bucket/train.csv", "auto", "train")


def test_what_exists_is_local_even_if_it_could_be_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "sst2").write_text("text,label\n", encoding="utf-8")
    assert resolve_source("glue/sst2", "csv", "train").files == ((Path("glue/sst2"), "csv"),)
    assert resolve_source("glue/sst2", "hub", "train").hub == HubName("nyu-mll/glue", "sst2")
    odd = tmp_path / "rows:train.csv"
    odd.touch()
    assert resolve_source(str(odd), "auto", "train").files == ((odd, "csv"),)


def test_a_folder_gives_its_files_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("part-2.csv", "part-1.jsonl.gz", "part-3.parquet", "README.md", ".part-0.csv", "metadata.json"):
        (tmp_path / name).touch()
    (tmp_path / "more.csv").mkdir()
    assert [path.name for path, _ in resolve_source(str(tmp_path), "auto", "train").files] == [
        "part-1.jsonl.gz",
        "part-2.csv",
        "part-3.parquet",
    ]
    assert [path.name for path, _ in resolve_source(str(tmp_path), "csv", "train").files] == ["part-2.csv"]


def test_a_folder_of_splits_is_refused(tmp_path: Path) -> None:
    for name in ("train.jsonl", "dev.jsonl", "train-2.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"holds dev\.jsonl and train-2\.jsonl; name one file"):
        resolve_source(str(tmp_path), "auto", "train")


@pytest.mark.parametrize("data_format", ["auto", "csv", "dataset"])
def test_a_folder_without_data_is_neither(data_format: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match="save_to_disk folder") as caught:
        resolve_source(str(tmp_path), data_format, "train")
    assert str(tmp_path) in str(caught.value)


def test_unknown_endings_name_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.touch()
    with pytest.raises(DataError, match=r"known endings: \.csv, .*data\.format"):
        resolve_source(str(path), "auto", "train")
    assert resolve_source(str(path), "tsv", "train").files == ((path, "tsv"),)


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.touch()
    with pytest.raises(DataError, match=r"a split \(:train\) goes with"):
        resolve_source(f"{path}:train", "auto", "train")


def test_a_file_is_no_dataset_folder(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.touch()
    with pytest.raises(DataError, match=r"data\.format=dataset"):
        resolve_source(str(path), "dataset", "train")


def test_resolving_and_opening_read_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no parquet at all")
    (reader,) = open_source(resolve_source(str(path), "auto", "train"))
    assert reader.name == str(path)
    (hub,) = open_source(resolve_source("imdb", "auto", "eval"))
    assert hub.name == "stanfordnlp/imdb:validation"


def test_resolving_imports_no_heavy_library() -> None:
    code = (
        "import sys, raybrew.data.readers.sources\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_repositories_with_a_script_are_read_from_their_parquet_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[dict[str, object]] = []

    def load_dataset(path: str, name: str | None = None, **options: object) -> str:
        asked.append({"path": path, "name": name, **options})
        if "revision" not in options:
            raise RuntimeError("Dataset scripts are no longer supported, but found conll2003.py")
        return "rows"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_hub(HubName("owner/old", "part"), "train", Path("old")) == "rows"
    assert asked[1] == {
        "path": "owner/old",
        "name": None,
        "data_dir": "part",
        "revision": "refs/convert/parquet",
        "split": "train",
    }
