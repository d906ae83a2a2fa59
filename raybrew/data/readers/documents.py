"""Rows of files that are one JSON document: an array of objects, what pandas writes, SQuAD's nested articles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raybrew.errors import DataError

__all__ = ["is_document", "rows_of_document"]

_FIX = (
    "write one object per row, as a list or one a line (pandas: df.to_json(path, orient='records', lines=True); "
    "datasets: dataset.to_json(path))"
)


def is_document(value: Any, columns: Sequence[str]) -> bool:
    """Whether the only value of a file holds rows rather than being one."""
    if not isinstance(value, dict):
        return isinstance(value, list)
    if _is_grid(value) or _nested(value) is not None:
        return True
    if value and all(isinstance(each, dict) for each in value.values()):
        return _is_by_column(value, columns) or set(columns) <= set(next(iter(value.values())))
    return not set(columns) <= set(value) and _table(value) is not None


def rows_of_document(name: str, value: Any, columns: Sequence[str]) -> Iterator[Any]:
    """The rows in a JSON document, in the order of the file; what is no object among them comes as it is.

    Forms: a list of objects, alone or as the one list of an object ({"version": ..., "data": [...]}); pandas' `columns`
    ({column: {index: value}}), `index`, `split` and `table`; SQuAD ({"data": [{"paragraphs": ...}]}), each question
    being a row of id, title, context, question, answers and is_impossible. DataError for others.
    """
    if isinstance(value, dict):
        articles = _nested(value)
        if articles is not None:
            return _questions(articles)
        if _is_grid(value):
            return (dict(zip(value["columns"], cells, strict=True)) for cells in value["data"])
        if _is_by_column(value, columns):
            return _by_column(value)
        table = _table(value)
        if table is None and value and all(isinstance(each, dict) for each in value.values()):
            table = list(value.values())
        value = table
    if not isinstance(value, list):
        raise DataError(f"{name}: JSON, but no rows in it; {_FIX}")
    if value and all(isinstance(row, list) for row in value):
        raise DataError(f"{name}: a list of lists, whose columns have no names; {_FIX}")
    return iter(value)


def _is_grid(value: Mapping[str, Any]) -> bool:
    """pandas' orient='split'."""
    names, rows = value.get("columns"), value.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        return False
    return all(isinstance(row, list) and len(row) == len(names) for row in rows)


def _is_by_column(value: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """pandas' default: an object for each column, with the same keys."""
    if not value or not all(isinstance(each, dict) for each in value.values()):
        return False
    keys = [each.keys() for each in value.values()]
    return set(columns) <= set(value) and all(each == keys[0] for each in keys)


def _by_column(value: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for key in next(iter(value.values())):
        yield {column: cells[key] for column, cells in value.items()}


def _table(value: Mapping[str, Any]) -> list[Any] | None:
    """The one list of objects in an object."""
    lists = [each for each in value.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
    return lists[0] if len(lists) == 1 else None


def _nested(value: Mapping[str, Any]) -> list[Any] | None:
    """The articles of a file in SQuAD's form."""
    articles = value.get("data")
    if not isinstance(articles, list) or not articles:
        return None
    return articles if all(isinstance(each, dict) and "paragraphs" in each for each in articles) else None


def _questions(articles: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    for article in articles:
        for paragraph in _objects(article["paragraphs"]):
            for asked in _objects(paragraph.get("qas")):
                answers = _objects(asked.get("answers"))
                yield {
                    "title": article.get("title"),
                    "context": paragraph.get("context"),
                    **asked,
                    "answers": {name: [each.get(name) for each in answers] for name in ("text", "answer_start")},
                }


def _objects(values: Any) -> list[Mapping[str, Any]]:
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []
