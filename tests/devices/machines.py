"""The pretend accelerator and a real one behind one interface, and what may make the host wait for them."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pretend import DEVICE, Accelerator, Seen, Wait, site_of, values_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Cuda", "device_of", "half_precision", "on_host", "on_machine", "refuse_others", "waits_by_site"]

#: What moves numbers, or chooses among them, computes nothing: it may be given any type.
MOVES = """
_reshape_alias _unsafe_view alias argmax as_strided cat clone copy_ detach expand gather index index_select
masked_fill narrow permute scatter select select_backward slice slice_backward split squeeze stack t transpose
unbind unsqueeze view
"""


def device_of(machine: str) -> torch.device:
    """The device of a machine, `pretend` or `cuda`."""
    return DEVICE if machine == "pretend" else torch.device("cuda", 0)


def on_machine(machine: str, watch_types: bool = False) -> Accelerator | Cuda:
    """A context in which `device_of(machine)` is watched."""
    return Accelerator(watch_types) if machine == "pretend" else Cuda(watch_types)


def on_host(tensor: Tensor) -> Tensor:
    """A copy for the test to look at, without gradient."""
    return values_of(tensor).cpu().clone()


class Cuda(TorchDispatchMode):
    """A GPU, watched as the pretend one is: torch itself warns of what waits, and mixed devices are its errors."""

    def __init__(self, watch_types: bool = False) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.seen: list[Seen] = []
        self.watch_types = watch_types
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> Cuda:
        self._warnings.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self.note_warning
        torch.cuda.set_sync_debug_mode("warn")
        if self.watch_types:
            super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.watch_types:
            super().__exit__(*error)
        torch.cuda.set_sync_debug_mode("default")
        self._warnings.__exit__(*error)

    def note_warning(self, message: Warning | str, *place: Any, **more: Any) -> None:
        if "synchroniz" in str(message):
            self.waits.append(Wait(site_of(sys._getframe(1)), traceback.extract_stack(limit=2)[0].name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = torch.utils._pytree.tree_leaves((args, kwargs or {}))
        found = tuple(each.dtype for each in flat if isinstance(each, Tensor) and each.dtype.is_floating_point)
        if found and func.overloadpacket is not torch.ops.aten._to_copy:
            self.seen.append(Seen(site_of(sys._getframe(1)), func.overloadpacket.__name__, found))
        return func(*args, **(kwargs or {}))


def waits_by_site(machine: Accelerator | Cuda) -> Counter[str]:
    """How often each function of raybrew made the host wait; what the test itself does is left out."""
    return Counter(wait.site for wait in machine.waits if wait.site != "test")


def refuse_others(found: Collection[str], listed: Mapping[str, str]) -> None:
    """AssertionError that names the sites that are not among those with a reason."""
    others = sorted(set(found) - set(listed))
    assert not others, f"the host waits for the device in {', '.join(others)}; avoid it, or list it with a reason"


def half_precision(seen: list[Seen], folder: str = "losses/") -> set[tuple[str, str]]:
    """Operations of losses that were given numbers of 16 bits."""
    return {
        (each.site, each.operation)
        for each in seen
        if each.site.startswith(folder)
        and each.operation not in MOVES.split()
        and any(kind in (torch.bfloat16, torch.float16) for kind in each.types)
    }
