"""Findings about services on the internet: the Hugging Face hub and trackers. Offline is no problem."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from raybrew.catalog.target import load_target
from raybrew.catalog.trackers import TRACKERS
from raybrew.config import Experiment
from raybrew.diagnosis.findings import Finding
from raybrew.tracking.reach import unreachable

__all__ = ["hub", "trackers"]

_TRUE = ("1", "true", "yes", "on")


def hub(experiment: Experiment | None) -> Iterator[Finding]:
    """Whether models and datasets can be fetched, and by whose name."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        yield Finding("hub", "ok", "HF_HUB_OFFLINE is set: models and datasets come from folders and the local cache")
        return
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    reason = unreachable(url)
    if reason:
        yield Finding(
            "hub",
            "warning",
            f"{urlsplit(url).hostname} does not answer ({reason})",
            "name local folders, or set HF_HUB_OFFLINE=1, which takes what is cached and does not wait",
        )
        return
    from huggingface_hub import get_token

    named = "with a token" if get_token() else "without a token: private and gated models are not seen"
    yield Finding("hub", "ok", f"{urlsplit(url).hostname} answers; {named}")


def trackers(experiment: Experiment | None) -> Iterator[Finding]:
    """Whether the services can be reached that runs are mirrored to."""
    if experiment is None:
        return
    asked = {one.name: one for one in experiment.tracking.asked}
    for name, spec in TRACKERS.items():
        if spec.check and name not in asked:
            yield Finding(spec.title, "ok", f"not asked for (tracking.{name})")
    for one in asked.values():
        if one.spec.check:
            yield from (Finding(one.spec.title, *reach) for reach in load_target(one.spec.check)(one.section))
