"""Whether what a tracker writes to can be reached, for `raybrew doctor`."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Literal, NamedTuple

__all__ = ["Reach", "unreachable"]

_SECONDS = 4.0


class Reach(NamedTuple):
    """What was found. A `problem` keeps the tracker from working, a `warning` may."""

    status: Literal["ok", "warning", "problem"]
    message: str
    remedy: str = ""


def unreachable(url: str) -> str:
    """Why nobody answers at `url`; empty if somebody does."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", None) or reason)
    return ""
