"""What scripts bring along: shared modules, loose adaptors, other tokens, names of TextBrewer's modules, subclasses."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import (
    HIDDEN,
    VOCABULARY,
    PlainModel,
    batches,
    distiller,
    examples_adaptor,
    logits_adaptor,
    settings,
    sgd,
    student,
    teacher,
    weights_of,
)
from torch import Tensor, nn

import raybrew
from raybrew import BasicDistiller, DistillationConfig, GeneralDistiller, MultiTaskDistiller, MultiTeacherDistiller
from raybrew.errors import ConfigError, LossError
from raybrew.old_names import MODULES


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def modes_seen(model: nn.Module, seen: list[set[bool]]) -> None:
    """Notes, for each forward pass of `model`, in which modes its modules are."""
    model.register_forward_pre_hook(lambda *_: seen.append({module.training for module in model.modules()}))


def pair_with_shared_modules() -> tuple[PlainModel, PlainModel]:
    wise, pupil = teacher(), student(hidden=12, dropout=0.5)
    pupil.embeddings, wise.dropout = wise.embeddings, pupil.dropout
    pupil.mixes[0] = wise.mixes[0]
    return wise, pupil


@pytest.mark.parametrize(
    ("train", "values"),
    [({}, {}), ({"gradient_accumulation_steps": 2}, {}), ({}, {"is_caching_logits": True}), ({"fp16": True}, {})],
)
def test_a_shared_teacher_runs_in_evaluation_mode(
    train: dict[str, Any], values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In every pass, while the student's passes that have a gradient keep their dropout; and it is told."""
    wise, pupil = pair_with_shared_modules()
    of_teacher: list[set[bool]] = []
    of_student: list[set[bool]] = []
    modes_seen(wise, of_teacher)
    pupil.register_forward_pre_hook(
        lambda *_: of_student.append({m.training for m in pupil.modules()}) if torch.is_grad_enabled() else None
    )

    def callback(model: nn.Module, step: int) -> None:
        model.eval()
        model.train()

    config = DistillationConfig(intermediate_matches=[{**HIDDEN, "proj": None}], **values)
    one = GeneralDistiller(settings(tmp_path, **train), config, wise, pupil, examples_adaptor, examples_adaptor)
    with one:
        one.train(sgd(pupil), batches(4), num_epochs=2, callback=callback)
    assert len(of_teacher) >= 4
    assert all(modes == {False} for modes in of_teacher)
    assert len(of_student) == 8
    assert all(modes == {True} for modes in of_student)
    (warning,) = warnings_of(caplog)
    assert "trains 3 weights of the teacher" in warning
    assert "embeddings.weight" in warning


def test_teachers_of_several_kinds_that_share(tmp_path: Path) -> None:
    for tasks in (False, True):
        wise, pupil = pair_with_shared_modules()
        seen: list[set[bool]] = []
        modes_seen(wise, seen)
        config = settings(tmp_path)
        if tasks:
            names = dict.fromkeys(("a", "b"), logits_adaptor)
            models = {"a": wise, "b": teacher(seed=4)}
            multi = MultiTaskDistiller(config, DistillationConfig(), models, pupil, names, names)
            multi.train(sgd(pupil), {"a": batches(3), "b": batches(3)}, num_steps=6)
        else:
            several = MultiTeacherDistiller(
                config, DistillationConfig(), [teacher(seed=4), wise], pupil, logits_adaptor, logits_adaptor
            )
            several.train(sgd(pupil), batches(3), num_epochs=1)
        assert len(seen) > 2
        assert all(modes == {False} for modes in seen)


def test_a_model_may_teach_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One step is that of its own logits without dropout as targets."""
    pupil, batch = student(dropout=0.5), batches(1)[0]
    by_hand = copy.deepcopy(pupil)
    torch.manual_seed(3)
    with torch.no_grad():
        wanted = (by_hand.eval()(**batch)["logits"] / 4).softmax(-1)
    (-(wanted * (by_hand.train()(**batch)["logits"] / 4).log_softmax(-1)).sum(-1).mean()).backward()
    sgd(by_hand).step()
    one = GeneralDistiller(settings(tmp_path), DistillationConfig(), pupil, pupil, logits_adaptor, logits_adaptor)
    torch.manual_seed(3)
    one.train(sgd(pupil), [batch], num_epochs=1)
    torch.testing.assert_close(weights_of(pupil), weights_of(by_hand))
    assert len(warnings_of(caplog)) == 1


def test_weights_that_stay_are_no_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for frozen in (True, False):
        wise, pupil = teacher(), student(hidden=12)
        pupil.embeddings = wise.embeddings
        if frozen:
            pupil.embeddings.requires_grad_(False)
        weights = [weight for name, weight in pupil.named_parameters() if frozen or "embeddings" not in name]
        one = GeneralDistiller(settings(tmp_path), DistillationConfig(), wise, pupil, logits_adaptor, logits_adaptor)
        before = weights_of(wise)
        one.train(torch.optim.SGD(weights, lr=0.1), batches(2), num_epochs=1)
        assert torch.equal(weights_of(wise), before)
    assert warnings_of(caplog) == []


def test_unknown_keys_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs["logits"], "lables": batch["labels"], 3: None}

    pupil = student()
    distiller(tmp_path, pupil, adaptor, {"gradient_accumulation_steps": 2}).train(sgd(pupil), batches(4), num_epochs=3)
    told = warnings_of(caplog)
    assert len(told) == 4
    assert [text.partition(":")[0] for text in told] == ["adaptor_S"] * 2 + ["adaptor_T"] * 2
    assert "unknown key 'lables' is ignored" in told[0]
    assert "did you mean 'labels'?" in told[0]


def test_features_that_nothing_compares_may_be_anything(tmp_path: Path) -> None:
    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return examples_adaptor(batch, outputs) | {"attention": (None, "none", None)}

    pupil = student()
    distiller(tmp_path, pupil, adaptor, intermediate_matches=[HIDDEN]).train(sgd(pupil), batches(2), num_epochs=1)
    match = {"layer_T": 0, "layer_S": 0, "feature": "attention", "loss": "attention_mse", "weight": 1}
    with pytest.raises(LossError, match="'attention' must be a tensor or a list of tensors"):
        distiller(tmp_path, pupil, adaptor, intermediate_matches=[match]).train(sgd(pupil), batches(2), num_epochs=1)


def two_vocabularies() -> dict[str, Any]:
    """A batch whose teacher has rows of nine other tokens."""
    generator = torch.Generator().manual_seed(3)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [6], [2]])).long()
    wider = {"input_ids": torch.randint(1, VOCABULARY, (4, 9), generator=generator), "attention_mask": mask}
    batch = batches(1)[0]
    return {"teacher": wider, "student": {name: batch[name] for name in ("input_ids", "attention_mask")}}


def layers_adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"hidden": outputs["hidden"], "inputs_mask": batch["attention_mask"]}


@pytest.mark.parametrize("loss", ["gram", "pkd"])
@pytest.mark.parametrize("custom", [False, True])
def test_each_side_has_its_own_mask(loss: str, custom: bool, tmp_path: Path) -> None:
    """One step of a match over two vocabularies, by hand from the real tokens of each row."""
    batch, pupil, wise = two_vocabularies(), student(hidden=12), teacher()
    by_hand = copy.deepcopy(pupil)
    layers = [by_hand(**batch["student"])["hidden"][0], wise(**batch["teacher"])["hidden"][0].detach()]
    values = []
    for row in range(4):
        given, wanted = (
            states[row][side["attention_mask"][row] == 1]
            for states, side in zip(layers, (batch["student"], batch["teacher"]), strict=True)
        )
        if loss == "gram":
            values.append((given.T @ given / len(given) - wanted.T @ wanted / len(wanted)).square().mean())
        else:
            values.append((given[0] / given[0].norm() - wanted[0] / wanted[0].norm()).square().sum())
    torch.stack(values).mean().backward()
    sgd(by_hand).step()

    match = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": loss, "weight": 1}
    modules = {"module_T": "embeddings", "module_S": "embeddings", "loss": loss, "weight": 1}
    config = DistillationConfig(intermediate_matches=[] if custom else [match])
    one = GeneralDistiller(settings(tmp_path), config, wise, pupil, *[layers_adaptor] * 2, [modules] if custom else [])
    one.train(sgd(pupil), [batch], num_epochs=1)
    torch.testing.assert_close(weights_of(pupil), weights_of(by_hand))


def test_gram_of_other_tokens_asks_for_the_teachers_mask(tmp_path: Path) -> None:
    def bare(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"hidden": outputs["hidden"]}

    pupil, match = student(hidden=12), {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "fsp", "weight": 1}
    config = DistillationConfig(intermediate_matches=[match])
    one = GeneralDistiller(settings(tmp_path), config, teacher(), pupil, bare, layers_adaptor)
    with pytest.raises(LossError, match=r"fsp.2-4: gram: mask .* give the teacher's mask too \(`inputs_mask`"):
        one.train(sgd(pupil), [two_vocabularies()], num_epochs=1)


@pytest.mark.parametrize("loss", ["pooled_mse", "pooled_cos"])
@pytest.mark.parametrize("custom", [False, True])
def test_pooled_outputs_beside_a_mask_of_tokens(loss: str, custom: bool, tmp_path: Path) -> None:
    """As layers that the adaptor lists, and as outputs of modules; rows of another vocabulary on the teacher's side."""

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        pooled = [states[:, 0] for states in outputs["hidden"]]
        return {"hidden": pooled, "inputs_mask": batch["attention_mask"]}

    wise, pupil, batch = teacher(), student(), two_vocabularies()
    match = {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": loss, "weight": 1, "proj": ["linear", 8, 12]}
    modules = {
        "module_T": wise.pooler,
        "module_S": pupil.pooler,
        "loss": loss,
        "weight": 1,
        "proj_func": nn.Linear(8, 12),
    }
    config = DistillationConfig(intermediate_matches=[] if custom else [match])
    one = GeneralDistiller(settings(tmp_path), config, wise, pupil, adaptor, adaptor, [modules] if custom else [])
    before = weights_of(pupil)
    one.train(sgd(pupil), [batch], num_epochs=2)
    assert not torch.equal(weights_of(pupil), before)


def test_augmentation_as_documented() -> None:
    from raybrew.data_utils import deleting, long_disorder, masking, n_gram_sampling, short_disorder

    tokens = list(range(11))
    assert long_disorder(tokens, p=1, length=0.4) == [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]
    assert masking(tokens, p=1, mask=-1) == [-1] * 11
    assert deleting(tokens, p=0) == tokens
    assert short_disorder(["a", "b", "c", "d"], p=[0, 1, 0, 0, 0]) == ["b", "a", "d", "c"]
    assert len(n_gram_sampling(tokens, p_ng=[1.0], l_ng=[3])) == 3
    assert tokens == list(range(11))


def test_methods_that_are_never_called_are_refused() -> None:
    """A subclass of TextBrewer's that computes its own loss would train its base class's here, without a word."""
    with pytest.raises(ConfigError, match=r"Mine: train_on_batch, compute_loss of TextBrewer's .* never called"):
        type("Mine", (BasicDistiller,), {"train_on_batch": None, "compute_loss": None})
    assert issubclass(type("Fine", (GeneralDistiller,), {"evaluate": None}), BasicDistiller)


def test_modules_load_nothing_before_a_name_is_used() -> None:
    code = f"import sys, {', '.join(f'raybrew.{name}' for name in MODULES)}\n"
    code += "print(sorted({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_modules_by_their_old_names(name: str) -> None:
    """By an import, as an attribute, as a star."""
    module = importlib.import_module(f"raybrew.{name}")
    assert getattr(raybrew, name) is module
    assert importlib.util.find_spec(module.__name__) is not None
    found: dict[str, Any] = {}
    exec(f"from raybrew.{name} import *", found)
    own = set(module.__all__) - set(MODULES[name])
    assert {key for key in found if not key.startswith("__")} == set(MODULES[name]) | own
    assert not own or name == "losses", "which has names of raybrew's own"
    with pytest.raises(ImportError, match="cannot import name 'anything_else'"):
        exec(f"from raybrew.{name} import anything_else", found)


def test_names_are_the_same_objects() -> None:
    import raybrew.distiller_utils as utils
    import raybrew.presets as presets
    from raybrew.distiller_basic import BasicDistiller as OldBasicDistiller

    assert OldBasicDistiller is raybrew.BasicDistiller
    assert presets.MATCH_LOSS_MAP is utils.MATCH_LOSS_MAP is raybrew.MATCH_LOSS_MAP
    assert utils.CustomMatch is raybrew.CustomMatch
    moved: Any = utils.move_to_device({"a": [torch.ones(2)]}, "cpu")
    assert isinstance(moved["a"][0], Tensor)
