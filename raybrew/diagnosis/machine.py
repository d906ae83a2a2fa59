"""Findings about this machine: versions, GPUs, memory, disks, limits. Asks no other machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
from packaging.requirements import Requirement

from raybrew.config import Experiment
from raybrew.diagnosis.findings import Finding, Status
from raybrew.storage.open import is_remote, stores_root
from raybrew.storage.staging import cache_root
from raybrew.version import __version__

__all__ = ["TESTED", "disks", "gpus", "limits", "shared_memory", "versions"]

#: Versions that the tests run with, those of the lock file (older Pythons have another one of some).
TESTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ray": ("2.60.0",),
        "torch": ("2.13.0",),
        "transformers": ("5.20.2", "5.23.0"),
        "datasets": ("5.2.0",),
        "pyarrow": ("25.0.1", "26.0.1"),
        "numpy": ("2.2.6", "2.4.6"),
        "pydantic": ("2.14.3",),
        "omegaconf": ("2.4.1rc1",),
        "optuna": ("5.0.0",),
    }
)
_GIB = 2**30
#: Less free disk than this is too little for any run, or for a comfortable one.
_LEAST_DISK, _GOOD_DISK = 1 * _GIB, 10 * _GIB
#: Ray's object store is as large as this at most; containers have 64 MiB by default.
_GOOD_SHARED_MEMORY = 1 * _GIB
_GOOD_OPEN_FILES = 4096


def versions() -> Iterator[Finding]:
    """raybrew, Python and the packages that matter, against what is required and what was tested."""
    python = platform.python_version()
    if not (3, 10) <= sys.version_info[:2] < (3, 14):
        yield Finding("versions", "problem", f"Python {python}", "use Python 3.10 to 3.13")
    required = {
        requirement.name: requirement
        for requirement in map(Requirement, importlib.metadata.requires("raybrew") or [])
        if requirement.marker is None or requirement.marker.evaluate()
    }
    fine = [f"raybrew {__version__}", f"Python {python}"]
    for name, tested in TESTED.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("versions", "problem", f"{name} is not installed", "pip install -c constraints.txt -e .")
            continue
        plain = version.partition("+")[0]  # torch says 2.13.0+cu130
        if name in required and not required[name].specifier.contains(plain, prereleases=True):
            yield Finding(
                "versions",
                "problem",
                f"{name} {version}, but raybrew needs {required[name].specifier}",
                f"pip install '{name}{required[name].specifier}'",
            )
        elif plain not in tested:
            yield Finding(
                "versions",
                "warning",
                f"{name} {version} is not what the tests run with ({' or '.join(tested)})",
                f"if something fails: pip install {name}=={tested[-1]}",
            )
        else:
            fine.append(f"{name} {version}")
    yield Finding("versions", "ok", ", ".join(fine))


def gpus(experiment: Experiment | None) -> Iterator[Finding]:
    """What torch sees; a problem where the experiment asks for a GPU and trains in this process."""
    import torch

    wanted = experiment is not None and "cuda" in (experiment.train.device, experiment.teacher.device)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = [
            f"{torch.cuda.get_device_name(index)} "
            f"({torch.cuda.get_device_properties(index).total_memory / _GIB:.0f} GiB)"
            for index in range(count)
        ]
        precision = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use fp16 or fp32"
        yield Finding("GPU", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}, {precision}")
    elif shutil.which("nvidia-smi") is not None:
        build = torch.version.cuda
        yield Finding(
            "GPU",
            "problem" if wanted else "warning",
            f"this machine has nvidia-smi, but torch {torch.__version__} sees no GPU",
            "install a build of torch with CUDA"
            if build is None
            else f"the driver must be new enough for CUDA {build}",
        )
    elif wanted and not os.environ.get("RAY_ADDRESS"):
        yield Finding(
            "GPU", "problem", "the experiment asks for cuda; this machine has none", "use device auto, or a cluster"
        )
    else:
        yield Finding("GPU", "ok", "none here: teachers and students run on CPUs")


def disks(experiment: Experiment | None, needed: int | None) -> Iterator[Finding]:
    """Free space where runs, stores, copies of remote stores and Ray's own files lie. `needed`: bytes of the stores."""
    folders: dict[str, Path] = {}
    if experiment is not None:
        root = stores_root(experiment.store)
        folders["store.storage_path"] = Path(experiment.store.storage_path).expanduser().absolute()
        if is_remote(root):
            folders["store.cache"] = cache_root(experiment.store.cache)
        else:
            folders["store.path"] = Path(root)
    else:
        folders["the current folder"] = Path.cwd()
    folders["Ray's files"] = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        text = f"{name}: {free / _GIB:.1f} GiB free at {folder}"
        wanted = needed if name in ("store.path", "store.cache") else None
        if not os.access(there, os.W_OK):
            yield Finding("disk", "problem", f"{name}: {there} cannot be written", f"set another {name}, or its rights")
        elif wanted is not None and free < wanted:
            yield Finding(
                "disk",
                "problem",
                f"{text}; the teacher's outputs take {wanted / _GIB:.1f} GiB",
                f"free some space, set {name}, or run the teacher live (teacher.source=live)",
            )
        elif free < _GOOD_DISK:
            status: Status = "problem" if free < _LEAST_DISK else "warning"
            yield Finding("disk", status, text, "free some space: a full disk ends captures and runs")
        else:
            took = f"; the teacher's outputs take {wanted / _GIB:.2f} GiB" if wanted is not None else ""
            yield Finding("disk", "ok", text + took)


def shared_memory(size: int | None, where: str) -> Iterator[Finding]:
    """Whether /dev/shm, of `size` bytes, is large enough for Ray's object store; nothing where there is none."""
    if size is not None and size < _GOOD_SHARED_MEMORY:
        yield Finding(
            "memory",
            "warning",
            f"{where}: /dev/shm has {size / 2**20:.0f} MiB, so Ray keeps its objects on disk",
            "start containers with --shm-size=4g (Kubernetes: an emptyDir of medium Memory at /dev/shm)",
        )


def limits() -> Iterator[Finding]:
    """CPUs, memory, open files."""
    memory = psutil.virtual_memory()
    yield Finding(
        "memory",
        "ok",
        f"{os.cpu_count()} CPUs, {memory.total / _GIB:.1f} GiB memory, {memory.available / _GIB:.1f} GiB of it free",
    )
    try:
        import resource
    except ImportError:  # no Unix
        return
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < _GOOD_OPEN_FILES:
        higher = f"ulimit -n {min(65536, most) if most > 0 else 65536}"
        yield Finding("limits", "warning", f"{files} open files at most, and Ray wants thousands", higher)
