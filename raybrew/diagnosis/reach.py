"""Findings about services on the internet: the Hugging Face hub and Weights & Biases. Offline is no problem."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from raybrew.config import Experiment
from raybrew.diagnosis.findings import Finding, Status

__all__ = ["hub", "wandb"]

_SECONDS = 4.0
_TRUE = ("1", "true", "yes", "on")


def hub(experiment: Experiment | None) -> Iterator[Finding]:
    """Whether models and datasets can be fetched, and by whose name."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        yield Finding("hub", "ok", "HF_HUB_OFFLINE is set: models and datasets come from folders and the local cache")
        return
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    reason = _unreachable(url)
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


def wandb(experiment: Experiment | None) -> Iterator[Finding]:
    """Whether W&B can be reached, where runs are mirrored to it."""
    config = experiment.tracking.wandb if experiment is not None else None
    if config is None:
        if experiment is not None:
            yield Finding("W&B", "ok", "not asked for (tracking.wandb)")
        return
    from raybrew.tracking.wandb import has_key

    if config.mode == "offline" or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        yield Finding("W&B", "ok", "offline, as asked; `wandb sync` sends runs later")
        return
    if not has_key():
        status: Status = "problem" if config.mode == "online" else "warning"
        remedy = "`wandb login`, or WANDB_API_KEY in the environment of every node"
        yield Finding("W&B", status, "no key was found, so runs are kept offline", remedy)
        return
    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    reason = _unreachable(url)
    if reason:
        remedy = "tracking.wandb.mode=offline does not wait; metrics.jsonl has everything in any case"
        yield Finding("W&B", "warning", f"{urlsplit(url).hostname} does not answer ({reason})", remedy)
    else:
        yield Finding("W&B", "ok", f"{urlsplit(url).hostname} answers, and there is a key")


def _unreachable(url: str) -> str:
    """Why nobody answers at `url`; empty if somebody does."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", None) or reason)
    return ""
