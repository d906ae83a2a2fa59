"""Scripts next to TextBrewer with another import: seeds, two vocabularies, loose adaptors, names of its modules."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from plain_models import LENGTH, VOCABULARY, batches, examples_adaptor, student, tags_adaptor, teacher, weights_of
from torch import Tensor, nn

import raybrew
from raybrew.old_names import MODULES

HIDDEN = [
    {"layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 12]},
    {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "cos", "weight": 1, "proj": ["tanh", 8, 12]},
    {"layer_T": [0, 2], "layer_S": [0, 1], "feature": "hidden", "loss": "fsp", "weight": 1, "proj": ["relu", 8, 12]},
]


@pytest.fixture(params=["textbrewer", "raybrew"])
def peer(request: pytest.FixtureRequest, textbrewer: ModuleType) -> Any:
    return importlib.import_module(request.param)


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what TextBrewer draws from
    random.seed(seed)


def trained(
    package: Any,
    folder: Path,
    data: Any,
    adaptor: Any,
    matches: list[dict[str, Any]],
    dropout: float = 0.0,
    num_steps: int | None = None,
) -> tuple[Tensor, list[Any]]:
    """Weights after three epochs or `num_steps`, and the projections before the first."""
    pupil = student(dropout=dropout)
    seeded(3)
    distiller = package.GeneralDistiller(
        package.TrainingConfig(output_dir=str(folder / package.__name__), device="cpu", ckpt_steps=4),
        package.DistillationConfig(temperature=8, intermediate_matches=copy.deepcopy(matches)),
        teacher(),
        pupil,
        adaptor,
        adaptor,
    )
    start = [copy.deepcopy(projection) for projection in distiller.projs]
    with distiller:
        distiller.train(torch.optim.SGD(pupil.parameters(), lr=0.1), data, num_epochs=3, num_steps=num_steps)
    return weights_of(pupil), start


@pytest.mark.parametrize("num_steps", [None, 12])
def test_one_seed_gives_one_training(num_steps: int | None, textbrewer: ModuleType, tmp_path: Path) -> None:
    """Initial projections, dropout and the order of a shuffling dataloader come from the same random numbers."""
    import textbrewer

    rows = [{name: value[index] for name, value in batch.items()} for batch in batches(5) for index in range(4)]
    found = []
    for package in (textbrewer, raybrew):
        loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)  # type: ignore[arg-type]
        found.append(trained(package, tmp_path, loader, examples_adaptor, HIDDEN, 0.3, num_steps))
    for mine, other in zip(found[1][1], found[0][1], strict=True):
        assert torch.equal(weights_of(mine), weights_of(other))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)


def two_vocabularies(teacher_length: int) -> list[dict[str, Any]]:
    """The teacher's rows have other tokens, and other numbers of these."""
    data = []
    for number, batch in enumerate(batches(3)):
        generator = torch.Generator().manual_seed(number)
        size = len(batch["labels"])
        lengths = torch.randint(2, teacher_length + 1, (size, 1), generator=generator)
        wider = {
            "input_ids": torch.randint(1, VOCABULARY, (size, teacher_length), generator=generator),
            "attention_mask": (torch.arange(teacher_length) < lengths).long(),
        }
        data.append({"teacher": wider, "student": {name: batch[name] for name in ("input_ids", "attention_mask")}})
    return data


def masked(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs["logits"], "hidden": outputs["hidden"], "inputs_mask": batch["attention_mask"]}


def unmasked(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs["logits"], "hidden": outputs["hidden"]}


@pytest.mark.parametrize(
    ("loss", "adaptor"), [("pkd", masked), ("pkd", unmasked), ("fsp", unmasked), ("gram", unmasked)]
)
@pytest.mark.parametrize("length", [LENGTH + 3, LENGTH - 2])
def test_two_vocabularies(loss: str, adaptor: Any, length: int, textbrewer: ModuleType, tmp_path: Path) -> None:
    import textbrewer

    layers: tuple[Any, Any] = ([1, 4], [1, 2]) if loss != "pkd" else (4, 2)
    match = {"layer_T": layers[0], "layer_S": layers[1], "feature": "hidden", "loss": loss, "weight": 20}
    matches = [{**match, "proj": ["linear", 8, 12]}]
    theirs, ours = (
        trained(package, tmp_path, two_vocabularies(length), adaptor, matches)[0] for package in (textbrewer, raybrew)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    without = trained(raybrew, tmp_path, two_vocabularies(length), adaptor, [])[0]
    assert float((ours - without).abs().max()) > 1e-3, "the match moved nothing"


def test_an_adaptor_with_unknown_keys_trains_as_before(
    textbrewer: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`input_mask` instead of `inputs_mask`, as the adaptor of its MSRA NER example has it, and features in no use."""
    import textbrewer

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        mask = batch["attention_mask"]
        more = {"input_mask": mask, "logits_mask": mask, "attention": (None, None)}
        return {"logits": (outputs["tags"],), "hidden": tuple(outputs["hidden"])} | more

    theirs, ours = (trained(package, tmp_path, batches(3), adaptor, HIDDEN)[0] for package in (textbrewer, raybrew))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("raybrew")]
    assert [text.split(":")[0] for text in warnings] == ["adaptor_S", "adaptor_T"]
    assert all("'input_mask' is ignored" in text and "did you mean 'inputs_mask'?" in text for text in warnings)


def test_data_helpers_draw_what_they_drew(textbrewer: ModuleType) -> None:
    from textbrewer import data_utils

    import raybrew.data_utils as ours

    tokens = list(range(40))
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("masking", (0.3,)),
        ("masking", (0.2, 0)),
        ("deleting", (0.3,)),
        ("deleting", (0.8,)),
        ("n_gram_sampling", ()),
        ("n_gram_sampling", ([0.5, 0.5], [2, 7])),
        ("short_disorder", ([0.5, 0.1, 0.2, 0.1, 0.1],)),
        ("long_disorder", (0.4, 6)),
        ("long_disorder", (1, 0.4)),
    ]
    for seed in range(20):
        for name, arguments in calls:
            found = []
            for module in (data_utils, ours):
                seeded(seed)
                found.append(getattr(module, name)(tokens, *arguments))
            assert found[0] == found[1], (name, seed)


@pytest.mark.parametrize("name", MODULES["losses"])
@pytest.mark.parametrize("given", [False, True])
def test_losses_by_name(name: str, given: bool, textbrewer: ModuleType, same_value_and_gradient: Callable) -> None:
    """A mask for matches, temperatures of items for KD losses."""
    from textbrewer import losses

    generator = torch.Generator().manual_seed(1)
    kind = name.partition("_")[0]
    shape = {"kd": (3, 5), "att": (3, 2, 6, 6)}.get(kind, (3, 6, 4))
    first, second = (torch.randn(shape, generator=generator) for _ in range(2))
    third: Any = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]) if given else None
    options: dict[str, Any] = {} if third is None else {"mask": third}
    if kind == "kd":
        options = {"temperature": torch.tensor([1.0, 2.0, 8.0])} if given else {}
    pairs = name in ("fsp_loss", "mmd_loss")

    class Mean:
        """As the sum of one item, which is how the check takes it."""

        count = 1.0

        def __init__(self, value: Tensor) -> None:
            self.sum = value

    def sides(student: Tensor) -> tuple[Any, Any]:
        return ([student, student], [second, second]) if pairs else (student, second)

    for function in (getattr(raybrew.losses, name), getattr(importlib.import_module("raybrew.presets"), name)):
        same_value_and_gradient(
            lambda s, function=function: Mean(function(*sides(s), **options)),
            lambda s: getattr(losses, name)(*sides(s), **options),
            first,
        )
    keywords = {"kd": "logits", "att": "attention"}.get(kind, "state")
    named = dict(zip((f"{keywords}_S", f"{keywords}_T"), sides(first), strict=True))
    torch.testing.assert_close(
        getattr(raybrew.losses, name)(**named, **options), getattr(losses, name)(**named, **options)
    )


def test_maps_hold_what_theirs_hold(textbrewer: ModuleType) -> None:
    """Every name, called as TextBrewer calls it: builders of rules, schedules, projections; lists as keys."""
    from textbrewer import presets

    import raybrew.presets as ours

    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(4, 3, generator=generator) for _ in range(2))
    for key in (["flsw", 1, 2], ["flsw", {"beta": 0.5, "gamma": 1}], ["cwsm", 1]):
        torch.testing.assert_close(
            ours.TEMPERATURE_SCHEDULER[key](first, second, 4), presets.TEMPERATURE_SCHEDULER[key](first, second, 4)
        )
    assert float(ours.TEMPERATURE_SCHEDULER["constant"](first, second, 4)) == 4
    for name in presets.WEIGHT_SCHEDULER:
        assert ours.WEIGHT_SCHEDULER[name](0.25) == presets.WEIGHT_SCHEDULER[name](0.25)
    for build in (lambda module: module.PROJ_MAP["relu"], lambda module: module.projection_with_activation("GELU")):
        projections = []
        for module in (presets, ours):
            seeded(5)
            projections.append(build(module)(3, 4))
        assert torch.equal(projections[0](first), projections[1](first))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    one, other = (torch.randn(2, 2, 5, 5, generator=generator) for _ in range(2))
    for name in presets.MATCH_LOSS_MAP:
        sides: tuple[Any, Any] = (one, other) if name.startswith("attention") else (one[:, 0], other[:, 0])
        if name in ("gram", "fsp", "mmd", "nst"):
            sides = ([sides[0]] * 2, [sides[1]] * 2)
        torch.testing.assert_close(
            ours.MATCH_LOSS_MAP[name](*sides, mask=mask), presets.MATCH_LOSS_MAP[name](*sides, mask=mask)
        )


def names_of(module: ModuleType) -> Iterator[str]:
    """Public names that TextBrewer itself defines, as one sees them in `module`."""
    for name, value in vars(module).items():
        is_its_own = str(getattr(value, "__module__", "")).startswith("textbrewer") and not name.startswith("_")
        if is_its_own or (name.isupper() and isinstance(value, (dict, list))):
            yield name


#: Of its inner workings, and of torch before 1.2.
INTERNAL = {
    "AbstractDistiller", "BasicAdaptor", "Config", "DistillationContext", "DynamicKeyDict", "LayerNode", "MAPS",
    "auto_forward", "cycle", "get_outputs_from_batch", "initializer_builder", "is_apex_available", "no_op",
    "post_adaptor", "probability_shift_", "select_logits_with_mask",
}  # fmt: skip


@pytest.mark.parametrize(
    "module",
    ["", "configurations", "data_utils", "distillers", "distiller_basic", "distiller_general", "distiller_multitask",
     "distiller_multiteacher", "distiller_train", "distiller_utils", "losses", "presets", "projections", "schedulers",
     "utils"],
)  # fmt: skip
def test_every_name_of_its_modules_is_in_ours(module: str, textbrewer: ModuleType) -> None:
    path = f".{module}" if module else ""
    theirs, ours = (importlib.import_module(f"{package}{path}") for package in ("textbrewer", "raybrew"))
    wanted = set(names_of(theirs)) - INTERNAL
    assert wanted
    assert [name for name in sorted(wanted) if not hasattr(ours, name)] == []


def test_a_student_that_shares_its_teachers_dropout(tmp_path: Path, peer: Any) -> None:
    """TextBrewer lets a teacher drop units where its student does; here what it says is that of evaluation mode."""
    wise, pupil = teacher(), student(hidden=12)
    wise.dropout = pupil.dropout = nn.Dropout(0.5)
    said: list[Tensor] = []

    def noted(batch: Any, outputs: Any) -> dict[str, Any]:
        said.append(outputs["logits"].clone())
        return tags_adaptor(batch, outputs)

    config = peer.TrainingConfig(output_dir=str(tmp_path), device="cpu")
    distiller = peer.GeneralDistiller(config, peer.DistillationConfig(), wise, pupil, noted, tags_adaptor)
    data = batches(1) * 4
    with distiller:
        distiller.train(torch.optim.SGD(pupil.parameters(), lr=0.1), data, num_epochs=1)
    with torch.no_grad():
        wanted = wise.eval()(**data[0])["logits"]
    quiet = [torch.equal(logits, wanted) for logits in said]
    assert all(quiet) if peer is raybrew else not any(quiet)
