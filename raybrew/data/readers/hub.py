"""Datasets of the Hugging Face hub and of `save_to_disk` folders: names, splits, slices, and their loading."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raybrew.data.readers.records import first_line
from raybrew.errors import DataError

__all__ = ["LEGACY_NAMES", "HubName", "load_folder", "load_hub", "parse_hub_name"]

#: Names without an owner, which the hub no longer takes -> where these datasets live now.
LEGACY_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "ag_news": "fancyzhx/ag_news",
        "amazon_polarity": "fancyzhx/amazon_polarity",
        "dbpedia_14": "fancyzhx/dbpedia_14",
        "emotion": "dair-ai/emotion",
        "glue": "nyu-mll/glue",
        "imdb": "stanfordnlp/imdb",
        "multi_nli": "nyu-mll/multi_nli",
        "paws": "google-research-datasets/paws",
        "paws-x": "google-research-datasets/paws-x",
        "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
        "snli": "stanfordnlp/snli",
        "sst2": "stanfordnlp/sst2",
        "super_glue": "aps/super_glue",
        "tweet_eval": "cardiffnlp/tweet_eval",
        "xnli": "facebook/xnli",
        "yelp_polarity": "fancyzhx/yelp_polarity",
        "yelp_review_full": "Yelp/yelp_review_full",
    }
)

#: What `datasets` says of a repository that holds a loading script.
_SCRIPT_REFUSED = "scripts are no longer supported"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclasses.dataclass(frozen=True)
class HubName:
    """`owner/name` and, where the dataset has several, the subset (the hub says configuration)."""

    repository: str
    subset: str | None = None

    def __str__(self) -> str:
        return self.repository if self.subset is None else f"{self.repository}/{self.subset}"


def parse_hub_name(text: str) -> HubName | None:
    """`owner/name`, `owner/name/subset`, `glue`, `glue/sst2` as a HubName; None for anything else."""
    parts = text.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        return None
    if len(parts) <= 2 and parts[0] in LEGACY_NAMES:
        return HubName(LEGACY_NAMES[parts[0]], parts[1] if len(parts) == 2 else None)
    if len(parts) in (2, 3):
        return HubName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)
    return None


def load_hub(name: HubName, split: str, local: Path) -> Any:
    """The `datasets.Dataset` of one split (or slice) of a hub dataset; DataError in one line if that fails.

    `local` is where a file or folder of that name was looked for first.
    """
    import datasets

    try:
        try:
            return datasets.load_dataset(name.repository, name.subset, split=split)
        except RuntimeError as error:
            if _SCRIPT_REFUSED not in str(error):
                raise
            # Old repositories hold a loading script only; the hub keeps its rows as Parquet on a branch of its own.
            return datasets.load_dataset(
                name.repository, data_dir=name.subset, revision="refs/convert/parquet", split=split
            )
    except Exception as error:  # HTTP, parsing and cache libraries below raise errors of many families
        subset = "" if name.subset is None else f", subset {name.subset}"
        raise DataError(
            f"cannot load {name.repository}{subset}, split {split} from the Hugging Face hub: {first_line(error)}. "
            f"If a local file or folder is meant: there is none at {local}"
        ) from error


def load_folder(path: Path, split: str | None, default_split: str) -> Any:
    """The `datasets.Dataset` of a `save_to_disk` folder; of a folder with several splits, the one that is asked for."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # as in load_hub
        raise DataError(f"{path}: no readable save_to_disk folder ({first_line(error)})") from error
    if isinstance(loaded, datasets.DatasetDict):
        return _take(path, dict(loaded), split or default_split)
    if split is None:
        return loaded
    return _take(path, {str(loaded.split or default_split): loaded}, split)


def _take(path: Path, splits: Mapping[str, Any], wanted: str) -> Any:
    import datasets

    read: Callable[[str], Any] = datasets.ReadInstruction.from_spec
    try:
        parts = read(wanted).to_absolute({name: len(dataset) for name, dataset in splits.items()})
    except (ValueError, AssertionError) as error:
        has = ", ".join(splits)
        raise DataError(
            f"{path}: cannot take split {wanted!r} ({first_line(error)}); it has {has}, to be named as "
            f"{path}:{next(iter(splits))}"
        ) from error
    selected = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return selected[0] if len(selected) == 1 else datasets.concatenate_datasets(selected)
