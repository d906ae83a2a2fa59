"""The hardware that a measurement belongs to. Importing this module imports no torch."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["cpu_name", "machine_facts", "machine_text"]


def machine_facts() -> dict[str, Any]:
    """CPUs, memory, GPUs and system of this machine."""
    import psutil
    import torch

    return {
        "cpus": os.cpu_count(),
        "cpu": cpu_name(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": platform.platform(),
    }


def machine_text(facts: Mapping[str, Any]) -> str | None:
    """`machine_facts` in a few words, such as `8 x AMD EPYC 7763, 1 x NVIDIA H200`; None if they name no hardware."""
    gpus = facts.get("gpus") or []
    gpu_names = [str(gpu.get("name", gpu)) if isinstance(gpu, Mapping) else str(gpu) for gpu in gpus]
    parts = []
    if facts.get("cpu") or facts.get("cpus"):
        parts.append(" ".join(str(part) for part in (facts.get("cpus"), "x", facts.get("cpu") or "CPU") if part))
    if gpu_names:
        parts.append(f"{len(gpu_names)} x {gpu_names[0]}")
    return ", ".join(parts) or None


def cpu_name() -> str:
    """Model name of the CPU, or its architecture if the system does not tell the name."""
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:
                for line in file:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
