"""What cluster/ says: its files by kind, the commands in them, its Kubernetes documents and their pods."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "commands_in",
    "containers_of",
    "documents_of",
    "lines_of",
    "pod_templates",
    "ray_cluster_specs",
]

#: Where the image of cluster/Dockerfile has the repository.
IMAGE_ROOT = "/home/ray/raybrew/"


def lines_of(path: Path) -> list[str]:
    """Lines that are commands, continued ones joined.

    Code blocks of a page; of other files the indented comments and what is no comment.
    """
    text = re.sub(r"\\\n\s*(?:#\s*)?", " ", path.read_text(encoding="utf-8"))
    lines = text.splitlines()
    if path.suffix == ".md":
        return [line.strip() for line in lines if line.startswith("    ")]
    found = [line.lstrip("# ") for line in lines if re.match(r"\s*#\s{3,}\S", line)]
    if path.suffix == ".yaml":
        return found + [item for document in documents_of(path) for item in _strings_in(document)]
    return found + [line.strip() for line in lines if not line.lstrip().startswith("#")]


def _strings_in(value: Any) -> Iterator[str]:
    """Every text in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings_in(item)


def commands_in(line: str, program: str) -> list[list[str]]:
    """The arguments of every call of `program` in a line of shell; calls inside of quotes too."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose with an apostrophe
        return []
    found: list[list[str]] = []
    current: list[str] | None = None
    for number, word in enumerate(words):
        if word in ("&&", "||", "|", ";", "&", ">", ">>"):
            current = None
        elif current is not None:
            current.append(word.rstrip(";"))
        elif word.split("/")[-1] == program and _starts_a_command(words[:number]):
            current = []
            found.append(current)
        elif " " in word and f"{program} " in word and word != line:
            found += commands_in(word, program)
    return found


def _starts_a_command(before: list[str]) -> bool:
    """Whether what follows these words is run: after nothing, assignments, a separator, `--`, or `python -m`."""
    last = before[-1] if before else ""
    return not before or last in ("&&", "||", "|", ";", "--", "-m", "timeout") or bool(re.match(r"\w+=", last))


def documents_of(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def ray_cluster_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The cluster that a document of KubeRay describes; none for other kinds."""
    spec = document.get("spec") or {}
    found = {
        "RayCluster": lambda: [spec],
        "RayJob": lambda: [spec["rayClusterSpec"]],
        "RayCronJob": lambda: [spec["jobTemplate"]["rayClusterSpec"]],
    }.get(document["kind"], list)
    return found()


def pod_templates(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates of head and workers by name."""
    return {"head": cluster["headGroupSpec"]["template"]} | {
        group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]
    }


def containers_of(template: dict[str, Any]) -> list[dict[str, Any]]:
    return list(template["spec"]["containers"])
