"""Model folders before they are used: whole files, the bytes that were written, and weights that the config describes.

transformers itself leaves out weights that the config has no place for, and makes up those that the files lack.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from raybrew.data.arrow import hash_file
from raybrew.data.hashes import changed_files, git_hash_of, known_hashes
from raybrew.errors import ModelError
from raybrew.files import json_bytes, write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "RECORD",
    "changed_since_saved",
    "check_download",
    "check_files",
    "check_folder",
    "check_padding",
    "check_used",
    "has_weights",
    "read_record",
    "weights_fingerprint",
    "write_record",
]

#: What raybrew notes in the folder of a model that it saved: hashes of its files, and what else is to be known.
RECORD = "record.json"
#: People change these, and the model card comes later.
_NOT_RECORDED = frozenset({"config.json", "README.md", RECORD})
_POINTER = b"version https://git-lfs"
_SMALL_BYTES = 1024
#: Names of the hub for the bytes of a file: git's hash for small ones, SHA-256 for large ones.


def _sha256_of(path: Path) -> str:
    return hash_file(path, hashlib.sha256)


_HASHES = {40: git_hash_of, 64: _sha256_of}
_DIGEST = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
#: Where `hf download --local-dir` notes for each file the commit, the hash and the time of the download.
_NOTES = Path(".cache", "huggingface", "download")
#: Large files that may lie beside those that transformers reads.
_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt", ".gguf"}
)
#: Files of weights in the order in which transformers looks for them; an index lists several.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NUMBER = re.compile(r"\.(\d+)(?=\.)")
_MERGE = (
    "merge it into its base model and save that: PeftModel.from_pretrained(base, folder).merge_and_unload()"
    ".save_pretrained(...), with the tokenizer beside it"
)


def write_record(folder: Path, **facts: Any) -> None:
    """Note the hashes of the model's files in `folder`, beside `facts`."""
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and path.name not in _NOT_RECORDED]
    write_bytes(folder / RECORD, json_bytes({**facts, "xxh3": {name: hash_file(folder / name) for name in names}}))


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `write_record` noted; None without it, or where it cannot be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record if isinstance(record["xxh3"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def changed_since_saved(folder: Path) -> tuple[str, ...]:
    """One line for each file that is missing or changed since raybrew saved the model; none where it did not."""
    record = read_record(folder)
    if record is None:
        return (f"{RECORD} cannot be read",) if (folder / RECORD).exists() else ()
    return changed_files(folder, record["xxh3"])


def has_weights(folder: Path) -> bool:
    """Whether there are files of weights at all."""
    return any((folder / name).is_file() for name in _WEIGHTS)


def weights_fingerprint(folder: Path) -> str | None:
    """A hash of the files of weights; None where there are none. A file that stays as it is is read once a node."""
    names = list(_weight_files(folder))
    found = known_hashes(folder, names)
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(found.items())).encode()) if found else None


def check_folder(folder: Path) -> None:
    """ModelError for the folder of an adapter, and for pointers to files that were never downloaded."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds a PEFT adapter (adapter_config.json), not a whole model; {_MERGE}")
    pointers = sorted(path.name for path in folder.iterdir() if _is_pointer(path))
    if pointers:
        raise ModelError(
            f"{folder}: git-lfs left a pointer in place of {', '.join(pointers[:4])}; run "
            "`git lfs pull` in that repository, or download the model again"
        )


def check_files(folder: Path) -> None:
    """ModelError for weights that are cut, empty or missing, or that changed since raybrew saved them."""
    for name in _weight_files(folder):
        problem = _problem_of(folder / name)
        if problem is not None:
            raise ModelError(f"{folder}: {name} {problem}; copy or download it again, or save the model again")
    changed = changed_since_saved(folder)
    if changed:
        run = folder.parent if (folder.parent / "identity.json").is_file() else folder.parent.parent
        again = f"the command of the run in {run} trains it again" if (run / "identity.json").is_file() else ""
        raise ModelError(
            f"{folder}: {'; '.join(changed[:3])}, so this is not the model that was trained; "
            f"{again or 'copy the folder again'}, or remove {RECORD} there if you changed it on purpose"
        )


def check_download(folder: Path, weights: bool) -> None:
    """ModelError for a file of a model of the hub that holds other bytes than were downloaded, as far as that is known.

    That of `weights` as well where asked for. A node reads each file once.
    """
    names = [path.name for path in folder.iterdir() if path.suffix not in _WEIGHT_SUFFIXES and path.is_file()]
    files = {
        name: found
        for name in (*names, *(_weight_files(folder) if weights else ()))
        if (found := _hub_hash(folder / name))
    }
    for length, hash_of in _HASHES.items():
        wanted = {name: digest for name, (_, digest) in files.items() if len(digest) == length}
        hashes = known_hashes(folder, wanted, hash_of) if wanted else {}
        for name, digest in wanted.items():
            if hashes.get(name) != digest:
                raise ModelError(
                    f"{files[name][0]} ({name}) holds other bytes than the hub's ({digest}), so this is not the model "
                    "that was published; delete this file and download it again (in the hub's cache the next command "
                    "does so)"
                )


def check_used(name: str, model: PreTrainedModel, info: Mapping[str, Collection[Any]]) -> None:
    """ModelError where weights and config of a loaded model differ: layers that are left out or made up, other sizes.

    `info` is the loading info of transformers. Heads may differ: a new one is what fine-tuning asks for.
    """
    prefix = f"{model.base_model_prefix}."
    missing, unexpected = ([each.removeprefix(prefix) for each in info[key]] for key in _KEYS)
    resized = sorted(info["mismatched_keys"])
    lost = {each[0].removeprefix(prefix) for each in resized}
    loaded = {each.removeprefix(prefix) for each in model.state_dict()} - set(missing) - lost
    if any("lora_" in each or ".base_layer." in each for each in unexpected):
        raise ModelError(f"{name}: its weights are those of an adapter that was not merged; {_MERGE}")
    if not loaded:
        whole = " (each begins with module., as DataParallel saves them: save model.module)"
        wrapped = whole if unexpected and all(each.startswith("module.") for each in unexpected) else ""
        raise ModelError(
            f"{name}: none of its weights is one of {type(model).__name__}{wrapped}; save the model again, or correct "
            "the model_type in its config.json"
        )
    theirs = {_pattern(each) for each in loaded if _NUMBER.search(each)}
    for found, held, made in ((unexpected, "more", "are not used"), (missing, "fewer", "would be made up")):
        layers = sorted((each for each in found if _pattern(each) in theirs), key=_numbers)
        if layers:
            raise ModelError(
                f"{name}: its weights hold {held} layers than its config.json says: {layers[0]}"
                f"{f' and {len(layers) - 1} others' if len(layers) > 1 else ''} {made}; correct the number of layers "
                "in config.json (num_hidden_layers, n_layers, n_layer), or save model and config together again"
            )
    body = [each for each in resized if each[0].startswith(prefix)]
    if body:
        weight, saved, wanted = body[0]
        raise ModelError(
            f"{name}: {weight} is {tuple(saved)} in its weights and {tuple(wanted)} by its config.json; correct the "
            "sizes in config.json, or save model and config together again"
        )


def check_padding(name: str, model: PreTrainedModel) -> None:
    """ModelError for a classifier of the last token whose config does not say which tokens are padding."""
    forward = inspect.unwrap(type(model).forward)
    if "pad_token_id" in forward.__code__.co_names and getattr(model.config, "pad_token_id", None) is None:
        raise ModelError(
            f"{name}: {type(model).__name__} finds the last token of a row by pad_token_id, which its config.json does "
            "not set; set pad_token_id there to the number of the padding token in its tokenizer"
        )


_KEYS = ("missing_keys", "unexpected_keys")


def _hub_hash(path: Path) -> tuple[Path, str] | None:
    """The file that holds the bytes of a download and the hash that the hub names them by; None where none is kept.

    The cache links each file to a blob of that name. `--local-dir` leaves a note, which counts while the file is not
    changed after it: whoever edits or trains such a copy makes a model of their own.
    """
    if path.is_symlink():
        blob = path.resolve()
        return (blob, blob.name) if blob.parent.name == "blobs" and _DIGEST.fullmatch(blob.name) else None
    try:
        _, digest, time = (path.parent / _NOTES / f"{path.name}.metadata").read_text(encoding="utf-8").split()
        unchanged = path.stat().st_mtime <= float(time) + 1
    except (OSError, ValueError):
        return None
    return (path, digest) if unchanged and _DIGEST.fullmatch(digest) else None


def _pattern(name: str) -> str:
    return _NUMBER.sub(".#", name)


def _numbers(name: str) -> tuple[list[int], str]:
    return [int(number) for number in _NUMBER.findall(name)], name


def _is_pointer(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _SMALL_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _weight_files(folder: Path) -> Iterable[str]:
    """The files that transformers would read; nothing where there are none, which it says itself."""
    first = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None or not first.endswith(".json"):
        return [] if first is None else [first]
    try:
        listed = set(json.loads((folder / first).read_text(encoding="utf-8"))["weight_map"].values())
        if any(Path(name).name != name for name in listed):
            raise ValueError("a file outside the folder is listed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder}: {first} cannot be read ({error}); save the model again") from error
    return sorted(listed)


def _problem_of(path: Path) -> str | None:
    """What is wrong with a file of weights, as far as can be seen without reading it all."""
    if not path.is_file():
        return "is missing, but the index lists it"
    size = path.stat().st_size
    if not size:
        return "is empty"
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix != ".safetensors":
            # Older files are no archives; what is wrong with those is seen when they are read.
            return "is cut" if start.startswith(b"PK") and not zipfile.is_zipfile(path) else None
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            return f"is cut, or not a safetensors file ({size} bytes)"
        header = file.read(length)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "is not a safetensors file"
    return None if size == whole else f"is cut: it has {size} of {whole} bytes"
