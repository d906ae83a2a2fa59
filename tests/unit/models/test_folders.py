"""Model folders that are not what they seem: each is one ModelError that says the cure, before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_teacher import CLASSES, make_teacher
from transformers import GPT2Config, GPT2ForSequenceClassification

from raybrew.errors import ModelError
from raybrew.exports.folder import save_student
from raybrew.models.loading import ModelSource, load_config, load_model, load_tokenizer, model_labels
from raybrew.models.weights import RECORD, changed_since_saved

_WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    make_teacher(folder)
    return folder


@pytest.fixture
def teacher(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "teacher"))


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / _WEIGHTS
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def cut(folder: Path) -> None:
    path = folder / _WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_shard(folder: Path) -> None:
    load_model(ModelSource(str(folder)), "classification").save_pretrained(folder, max_shard_size="20KB")
    (folder / _WEIGHTS).unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def old_format(folder: Path, size: int) -> None:
    torch.save(load_file(folder / _WEIGHTS), folder / "pytorch_model.bin")
    (folder / _WEIGHTS).unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:size])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a file": (cut, r"model\.safetensors is cut: it has \d+ of \d+ bytes; copy or download it again"),
    "only its start": (lambda folder: (folder / _WEIGHTS).write_bytes(b"ab"), "is cut, or not a safetensors file"),
    "empty file": (lambda folder: (folder / _WEIGHTS).write_bytes(b""), r"model\.safetensors is empty"),
    "no header": (
        lambda folder: (folder / _WEIGHTS).write_bytes(b"\2" + bytes(7) + b"[]"),
        "is not a safetensors",
    ),
    "git-lfs pointer": (
        lambda folder: (folder / _WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"git-lfs left a pointer in place of model\.safetensors; run `git lfs pull`",
    ),
    "shard missing": (lose_a_shard, r"model-00001-of-\d+\.safetensors is missing, but the index lists it"),
    "half an archive": (lambda folder: old_format(folder, 9000), r"pytorch_model\.bin is cut"),
    "empty archive": (lambda folder: old_format(folder, 0), r"pytorch_model\.bin is empty"),
    "fewer layers in config": (
        lambda folder: configure(folder, num_hidden_layers=1),
        r"its weights hold more layers than its config\.json says: encoder\.layer\.1\..* and 15 others are not used",
    ),
    "more layers in config": (
        lambda folder: configure(folder, num_hidden_layers=3),
        r"its weights hold fewer layers than its config\.json says: encoder\.layer\.2\..* would be made up",
    ),
    "other width in config": (lambda folder: configure(folder, intermediate_size=64), r"config\.json|cannot load"),
    "names of DataParallel": (lambda folder: rename(folder, "module.{}".format), r"save model\.module"),
    "unmerged adapter": (
        lambda folder: rename(folder, lambda name: name.replace("query.weight", "query.base_layer.weight")),
        r"an adapter that was not merged; merge it into its base model",
    ),
    "adapter beside a config": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        r"holds a PEFT adapter .*merge_and_unload",
    ),
}


@pytest.mark.parametrize("labels", [None, ("a", "b", "c", "d")], ids=["finished", "to train"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_is_not_whole_is_refused(teacher: Path, fault: str, labels: Any) -> None:
    damage, message = FAULTS[fault]
    damage(teacher)
    for needs_head in (True, False):
        with pytest.raises(ModelError, match=message):
            load_model(ModelSource(str(teacher)), "classification", labels, needs_head=needs_head)


def test_an_adapter_without_config_is_named(teacher: Path) -> None:
    for name in ("config.json", _WEIGHTS):
        (teacher / name).unlink()
    (teacher / "adapter_config.json").write_text("{}")
    for load in (load_config, load_tokenizer):
        with pytest.raises(ModelError, match="PEFT adapter"):
            load(ModelSource(str(teacher)))


def test_whole_models_of_any_kind_are_loaded(teacher: Path) -> None:
    source = ModelSource(str(teacher))
    model = load_model(source, "classification")
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(teacher, max_shard_size="20KB")
    (teacher / _WEIGHTS).unlink(missing_ok=True)
    sharded = load_model(source, "classification").state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in wanted.items())
    for path in teacher.glob("model*"):
        path.unlink()
    torch.save(wanted, teacher / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    old = load_model(source, "classification").state_dict()
    assert all(torch.equal(old[name], tensor) for name, tensor in wanted.items())
    # What pre-training leaves beside the encoder is no fault, nor is a new head.
    assert load_model(source, "classification", ("a", "b", "c", "d")).config.num_labels == 4
    assert load_model(source, "tagging", ("O", "B-X")).config.num_labels == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [({0: "no", 1: "yes", 2: "no"}, "gives no to several outputs"), ({1: "a", 2: "b", 3: "c"}, "has the numbers")],
)
def test_labels_that_name_no_output_or_two_are_refused(teacher: Path, names: dict[int, str], message: str) -> None:
    configure(teacher, id2label=names)
    with pytest.raises(ModelError, match=message):
        model_labels(load_config(ModelSource(str(teacher))))


def test_a_classifier_of_the_last_token_needs_to_know_padding(teacher: Path) -> None:
    """The tokenizer alone knows its padding token: every batch of two rows would fail."""
    tokenizer = load_tokenizer(ModelSource(str(teacher)))
    config = GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=16, n_head=2, n_positions=64, num_labels=CLASSES)
    for path in (teacher / _WEIGHTS, teacher / "config.json"):
        path.unlink()
    GPT2ForSequenceClassification(config).save_pretrained(teacher)
    source = ModelSource(str(teacher))
    with pytest.raises(ModelError, match=r"pad_token_id, which its config\.json does not set"):
        load_model(source, "classification")
    configure(teacher, pad_token_id=tokenizer.pad_token_id)
    load_model(source, "classification")


def test_changed_bytes_of_a_saved_student_are_noticed(teacher: Path, tmp_path: Path) -> None:
    source = ModelSource(str(teacher))
    folder = save_student(load_model(source, "classification"), load_tokenizer(source), tmp_path / "student", "")
    saved = ModelSource(str(folder))
    load_model(saved, "classification")
    for name in (_WEIGHTS, "tokenizer.json"):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
        assert changed_since_saved(folder) == (f"{name} holds other bytes than were written",)
        with pytest.raises(ModelError, match=f"{name} holds other bytes.*remove {RECORD} there if you changed it"):
            load_model(saved, "classification")
        data[-9] ^= 1
        path.write_bytes(data)
    load_model(saved, "classification")
    (folder / _WEIGHTS).write_bytes((teacher / _WEIGHTS).read_bytes()[:-4] + bytes(4))
    (folder / RECORD).unlink()
    load_model(saved, "classification")
