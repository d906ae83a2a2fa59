"""What each labelled row adds to the metrics, so that metrics can be compared on the same rows.

Every metric of a task is a function of sums over rows: counts of right answers, of labels found and expected, moments
of numbers. `RowScores` keeps the addends. With weights on the rows the same function gives the metric of a resample,
which is what a paired bootstrap needs; two models are paired if their scores have the same `key`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from raybrew.errors import writing
from raybrew.files import replacing

__all__ = [
    "LABELLED",
    "RowScores",
    "answers_key",
    "label_counts",
    "load_scores",
    "mean_scores",
    "number_scores",
    "one_hot",
    "save_scores",
    "tag_scores",
]

#: Columns of each label: right answers, answers that name it, and rows (spans, words) that have it.
_COUNTS = ("right", "named", "true")
#: Up to so many columns sums are made of dense ones.
_FEW_COLUMNS = 32
#: Kinds whose columns are counts by label.
LABELLED = ("classes", "label sets", "spans", "words")

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class RowScores:
    """Addends of all metrics, one line for each source row.

    Example:
        >>> scores = label_counts("classes", ("no", "yes"), right=[[1, 0], [0, 0]], named=[[1, 0], [1, 0]],
        ...                       true=[[1, 0], [0, 1]], key="k")
        >>> scores.metrics()["accuracy"]
        0.5
        >>> scores.metrics(np.array([[2.0, 0.0], [1.0, 1.0]]))["accuracy"].tolist()
        [1.0, 0.5]
    """

    kind: str
    """`classes`, `label sets`, `spans`, `words`, `numbers`, `means` or `tokens`: which formulas hold."""
    labels: tuple[str, ...]
    """Labels that are counted; empty for kinds without."""
    names: tuple[str, ...]
    """What each column holds."""
    values: Any
    """(rows, columns), a scipy CSR matrix of float64."""
    key: str
    """Equal for the scores of different models on the same rows with the same true answers."""

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def metrics(self, weights: Array | None = None) -> dict[str, Any]:
        """Each metric by name. With `weights` (resamples, rows), each is an array (resamples,)."""
        drawn = np.ones((1, len(self)), np.float32) if weights is None else weights
        kind = np.float32 if drawn.dtype == np.float32 and self._is_exact else np.float64
        drawn = np.asarray(drawn, kind)
        few = self.values.shape[1] <= _FEW_COLUMNS  # a dense product is ten times as fast for those
        sums = (drawn @ self.values.toarray().astype(kind)).T if few else np.asarray(self.values.T @ drawn.T)
        sums = sums.astype(np.float64)
        found = _FORMULAS[self.kind](self, dict(zip(self.names, sums, strict=True)))
        return found if weights is not None else {name: float(value[0]) for name, value in found.items()}

    @functools.cached_property
    def _is_exact(self) -> bool:
        """Whether sums over resamples are whole numbers that single precision holds: twice as fast, and the same."""
        data = self.values.data
        return bool((data == np.rint(data)).all() and np.abs(data).max(initial=0) * len(self) < 2**24)

    def per_label(self) -> dict[str, dict[str, float]]:
        """Label -> `precision`, `recall`, `f1` and `support` (how often it is true); empty for kinds without labels."""
        if self.kind not in LABELLED:
            return {}
        sums = dict(zip(self.names, np.asarray(self.values.sum(axis=0)).ravel(), strict=True))
        found = {}
        for label in self.labels:
            right, named, true = (float(sums[f"{count} {label}"]) for count in _COUNTS)
            found[label] = {
                "precision": right / named if named else 0.0,
                "recall": right / true if true else 0.0,
                "f1": 2 * right / (named + true) if named + true else 0.0,
                "support": true,
            }
        return found

    @functools.cached_property
    def correct(self) -> Array | None:
        """(rows,) bool: whether the whole answer is right, for kinds in which that is a yes or no; else None."""
        if self.kind == "classes":
            columns = [place for place, name in enumerate(self.names) if name.startswith("right ")]
            return np.asarray(self.values[:, columns].sum(axis=1)).ravel() > 0
        names = {"label sets": "exact", "means": "exact_match"}
        name = names.get(self.kind)
        if name is None or name not in self.names:
            return None
        return np.asarray(self.values[:, [self.names.index(name)]].todense()).ravel() > 0.5


def label_counts(
    kind: str,
    labels: Sequence[str],
    *,
    right: Any,
    named: Any,
    true: Any,
    key: str,
    others: Mapping[str, Any] | None = None,
) -> RowScores:
    """Scores of a labelled kind from counts (rows, labels), dense or sparse; `others`: further columns (rows,)."""
    from scipy import sparse

    parts = [sparse.csr_matrix(np.asarray(counts, np.float64) if not sparse.issparse(counts) else counts)
             for counts in (right, named, true)]  # fmt: skip
    names = [f"{count} {label}" for count in _COUNTS for label in labels]
    for name, column in {"rows": np.ones(parts[0].shape[0]), **(others or {})}.items():
        names.append(name)
        parts.append(sparse.csr_matrix(np.asarray(column, np.float64)[:, None]))
    return RowScores(kind, tuple(labels), tuple(names), sparse.hstack(parts, format="csr"), key)


def mean_scores(kind: str, columns: Mapping[str, Any], key: str) -> RowScores:
    """Scores whose metrics are means: `means` over rows; `tokens` over the column `tokens`, of sums for each row."""
    from scipy import sparse

    values = np.stack([np.asarray(column, np.float64) for column in columns.values()], axis=1)
    if kind == "means":
        values, names = np.column_stack([values, np.ones(len(values))]), (*columns, "rows")
    else:
        names = tuple(columns)
    return RowScores(kind, (), names, sparse.csr_matrix(values), key)


def number_scores(true: Array, predicted: Array, key: str) -> RowScores:
    """Scores of predicted numbers. Rank correlation uses the ranks among all rows, also for resamples."""
    from scipy import sparse
    from scipy.stats import rankdata

    x, y = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    pairs = {"": (x - x.mean(), y - y.mean()), "rank ": tuple(rankdata(v) - (len(v) + 1) / 2 for v in (x, y))}
    columns: dict[str, Array] = {"rows": np.ones(len(x)), "squared error": (x - y) ** 2}
    for name, (one, other) in pairs.items():
        columns |= {f"{name}x": one, f"{name}y": other, f"{name}xx": one**2, f"{name}yy": other**2,
                    f"{name}xy": one * other}  # fmt: skip
    return RowScores("numbers", (), tuple(columns), sparse.csr_matrix(np.stack(list(columns.values()), axis=1)), key)


def one_hot(numbers: Array, size: int) -> Any:
    """(rows, size) sparse, a single 1 in each row at the place of its number; none for negative numbers."""
    from scipy import sparse

    rows = np.flatnonzero(numbers >= 0)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, numbers[rows])), shape=(len(numbers), size))


def tag_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], tags: Sequence[str], spans: bool
) -> RowScores:
    """Scores of tags of words, each row a sentence; with `spans` also of the spans that seqeval reads from them."""
    pairs = list(zip(truth, predicted, strict=True))
    key = answers_key(list(tags), [list(row) for row in truth])
    words = _counted([_tags_of(one, other) for one, other in pairs], tags)
    if not spans:
        return label_counts("words", tags, **words, key=key)
    from seqeval.metrics.sequence_labeling import get_entities

    types = sorted({span[0] for tag in tags for span in get_entities([tag])})
    found = [(set(get_entities(list(one))), set(get_entities(list(other)))) for one, other in pairs]
    counts = _counted(
        [tuple([span[0] for span in side] for side in (one & other, other, one)) for one, other in found], types
    )
    others: dict[str, Any] = {
        "words": [len(one) for one, _ in pairs],
        "right words": [sum(a == b for a, b in zip(one, other, strict=True)) for one, other in pairs],
    }
    for count, matrix in words.items():
        dense = matrix.toarray()
        others |= {f"tag {count} {tag}": dense[:, place] for place, tag in enumerate(tags)}
    return label_counts("spans", types, **counts, key=key, others=others)


def _tags_of(truth: Sequence[str], predicted: Sequence[str]) -> tuple[list[str], Sequence[str], Sequence[str]]:
    return [one for one, other in zip(truth, predicted, strict=True) if one == other], predicted, truth


def _counted(rows: Sequence[Any], labels: Sequence[str]) -> dict[str, Any]:
    """For each of `right`, `named` and `true` how often each label occurs in each row, (rows, labels) sparse."""
    from scipy import sparse

    place = {label: index for index, label in enumerate(labels)}
    found: dict[str, Any] = {}
    for index, count in enumerate(_COUNTS):
        cells = [(row, place[label]) for row, sides in enumerate(rows) for label in sides[index]]
        where = np.array(cells, np.int64).reshape(-1, 2)
        # Entries of one cell are added up.
        matrix = sparse.coo_matrix((np.ones(len(where)), (where[:, 0], where[:, 1])), shape=(len(rows), len(labels)))
        found[count] = matrix.tocsr()
    return found


def answers_key(*parts: Any) -> str:
    """A `RowScores.key` from arrays, bytes or plain values that name rows and true answers."""
    digest = xxhash.xxh3_128()
    for part in parts:
        given = np.ascontiguousarray(part) if isinstance(part, np.ndarray) else None
        digest.update(given.tobytes() if given is not None else json.dumps(part, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _share(part: Array, whole: Array) -> Array:
    """`part / whole`, 0 where `whole` is 0."""
    return np.divide(part, whole, out=np.zeros_like(np.asarray(part, np.float64)), where=np.asarray(whole) != 0)


def _of_labels(scores: RowScores, sums: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    right, named, true = (np.stack([sums[f"{count} {label}"] for label in scores.labels]) for count in _COUNTS)
    return right, named, true


def _classes(scores: RowScores, sums: Mapping[str, Array]) -> dict[str, Array]:
    right, named, true = _of_labels(scores, sums)
    rows = sums["rows"]
    covariance = right.sum(axis=0) * rows - (named * true).sum(axis=0)
    spread = np.sqrt((rows**2 - (named**2).sum(axis=0)) * (rows**2 - (true**2).sum(axis=0)))
    return {
        "accuracy": _share(right.sum(axis=0), rows),
        "macro_f1": _share(2 * right, named + true).mean(axis=0),
        "mcc": _share(covariance, spread),
    }


def _label_sets(scores: RowScores, sums: Mapping[str, Array]) -> dict[str, Array]:
    right, named, true = _of_labels(scores, sums)
    return {
        "micro_f1": _share(2 * right.sum(axis=0), (named + true).sum(axis=0)),
        "macro_f1": _share(2 * right, named + true).mean(axis=0),
        "subset_accuracy": _share(sums["exact"], sums["rows"]),
    }


def _spans(scores: RowScores, sums: Mapping[str, Array]) -> dict[str, Array]:
    right, named, true = (counts.sum(axis=0) for counts in _of_labels(scores, sums))
    words = sums["words"]
    tags = sorted(name.removeprefix("tag right ") for name in scores.names if name.startswith("tag right "))
    f1 = [_share(2 * sums[f"tag right {tag}"], sums[f"tag named {tag}"] + sums[f"tag true {tag}"]) for tag in tags]
    return {
        "f1": _share(2 * right, named + true),
        "precision": _share(right, named),
        "recall": _share(right, true),
        "accuracy": _share(sums["right words"], words),
        "macro_f1": np.mean(f1, axis=0),
    }


def _words(scores: RowScores, sums: Mapping[str, Array]) -> dict[str, Array]:
    right, named, true = _of_labels(scores, sums)
    return {
        "accuracy": _share(right.sum(axis=0), true.sum(axis=0)),
        "macro_f1": _share(2 * right, named + true).mean(axis=0),
    }


def _numbers(scores: RowScores, sums: Mapping[str, Array]) -> dict[str, Array]:
    rows = sums["rows"]

    def correlation(name: str) -> Array:
        x, y, xx, yy, xy = (sums[f"{name}{part}"] for part in ("x", "y", "xx", "yy", "xy"))
        spread = np.maximum(rows * xx - x**2, 0.0) * np.maximum(rows * yy - y**2, 0.0)
        # What rounding leaves of a constant side is no spread.
        return _share(rows * xy - x * y, np.where(spread > 1e-18 * np.maximum(rows, 1) ** 4, np.sqrt(spread), 0.0))

    return {
        "pearson": correlation(""),
        "spearman": correlation("rank "),
        "mse": _share(sums["squared error"], rows),
    }


def _means(scores: RowScores, sums: Mapping[str, Array]) -> dict[str, Array]:
    return {name: _share(sums[name], sums["rows"]) for name in scores.names if name != "rows"}


def _tokens(scores: RowScores, sums: Mapping[str, Array]) -> dict[str, Array]:
    found = {name: _share(sums[name], sums["tokens"]) for name in scores.names if name != "tokens"}
    return found | {"perplexity": np.exp(np.minimum(-found["log_likelihood"], 700.0))}


_FORMULAS = {
    "classes": _classes,
    "label sets": _label_sets,
    "spans": _spans,
    "words": _words,
    "numbers": _numbers,
    "means": _means,
    "tokens": _tokens,
}


def save_scores(path: Path, scores: RowScores) -> None:
    """Write `scores` to `path` (.npz), replacing it whole."""
    about = {"kind": scores.kind, "labels": scores.labels, "names": scores.names, "key": scores.key}
    values = scores.values
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new, new.open("wb") as file:
            parts = {name: getattr(values, name) for name in ("data", "indices", "indptr")}
            about_bytes = np.frombuffer(json.dumps(about).encode(), np.uint8)
            np.savez_compressed(file, about=about_bytes, shape=np.array(values.shape), **parts)


def load_scores(path: Path) -> RowScores | None:
    """What `save_scores` wrote; None if there is no such file, or if it cannot be read."""
    from scipy import sparse

    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            values = sparse.csr_matrix(
                (file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"].tolist())
            )
        if about["kind"] not in _FORMULAS:
            return None
        return RowScores(about["kind"], tuple(about["labels"]), tuple(about["names"]), values, about["key"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, RecursionError):
        return None
