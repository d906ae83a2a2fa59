"""Teachers on a device: what is stored is what the CPU gives, and the host waits for results alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from machines import device_of, on_machine, refuse_others, waits_by_site
from tiny_teacher import make_rows, make_teacher, task_of

from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.signals import Signal, parse_signal
from raybrew.store.compute import Teacher
from raybrew.store.forms.base import Forms

REQUEST = tuple(
    parse_signal(name)
    for name in (
        ["logits", "pooled", "hidden.0", "hidden.2", "attention.1", "attention_probs.2", "query.1", "key.2", "value.2"]
    )
)

#: Sites that make the host wait, and why that is right.
LISTED = {"store/forms/columns.py:problems": "at the end of a shard all of its values must be finite"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


def captured(
    source: ModelSource,
    device: torch.device,
    element_type: str,
    precision: str,
    request: tuple[Signal, ...] = REQUEST,
) -> dict[str, np.ndarray]:
    teacher = Teacher(
        load_model(source, "classification").eval(),
        load_tokenizer(source),
        task_of(),
        device,
        precision,
        Forms(element_type),
        64,
    )
    teacher.model.to(device)
    tables = teacher.compute(teacher.encode(make_rows(12)), request)
    return {
        f"{signal}/{name}": flat(table.column(name)) for signal, table in tables.items() for name in table.column_names
    }


def flat(column: Any) -> np.ndarray:
    values = column.combine_chunks()
    while hasattr(values, "flatten") and values.type.num_fields:
        values = values.flatten()
    found = values.to_numpy(zero_copy_only=False)
    return (found.astype(np.uint32) << 16).view(np.float32) if found.dtype == np.uint16 else found.astype(np.float32)


@pytest.mark.parametrize(
    ("element_type", "precision"),
    [("float32", "fp32"), ("float16", "fp32"), ("bfloat16", "bf16"), ("int8", "fp32")],
)
def test_stores_what_the_cpu_gives(machine: str, source: ModelSource, element_type: str, precision: str) -> None:
    expected = captured(source, torch.device("cpu"), element_type, precision)
    with on_machine(machine, watch_types=precision == "bf16") as watched:
        found = captured(source, device_of(machine), element_type, precision)
    assert found.keys() == expected.keys()
    assert len(found) >= len(REQUEST)
    near = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.2, "int8": 1.0}[element_type]
    for name, values in found.items():
        assert values.shape == expected[name].shape
        np.testing.assert_allclose(values, expected[name], atol=near, rtol=near, err_msg=name)
    refuse_others(waits_by_site(watched), LISTED)
    if precision == "bf16":
        products = [each.types for each in watched.seen if each.operation in ("mm", "addmm")]
        assert products
        assert {kind for types in products for kind in types} == {torch.bfloat16}
