"""Shapes by name and numbers, and the teacher layers a student starts from; without torch."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybrew.catalog.layer_rules import START_RULES
from raybrew.catalog.shapes import SHAPES
from raybrew.config import ShapeConfig, StudentConfig
from raybrew.config.loading import build_experiment
from raybrew.distillers.matches import pair_layers
from raybrew.errors import ConfigError, ModelError
from raybrew.models.shapes import FAMILIES, TeacherDims, dims_of, pick_layers, resolve_shape, sizes_text

BERT_BASE = TeacherDims(12, 768, 12, 3072)
PUBLISHED = {
    "T6": (6, 768, 12, 3072),
    "T3": (3, 768, 12, 3072),
    "T3-small": (3, 384, 12, 1536),
    "T4-tiny": (4, 312, 12, 1200),
    "T12-nano": (12, 256, 4, 1024),
    "Electra-small": (12, 256, 4, 1024),
}


def numbers(shape: ShapeConfig) -> tuple[int | None, ...]:
    return (shape.layers, shape.hidden, shape.heads, shape.feed_forward)


def test_table_holds_the_published_shapes() -> None:
    found = {name: (row.layers, row.hidden, row.heads, row.feed_forward) for name, row in SHAPES.items()}
    assert found == PUBLISHED
    assert all(row.summary and "\n" not in row.summary for row in SHAPES.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_shape_does_not_depend_on_the_teacher(name: str) -> None:
    assert numbers(resolve_shape(name, BERT_BASE)) == PUBLISHED[name]
    assert resolve_shape(name, TeacherDims(2, 32, 2, 64)) == resolve_shape(name, BERT_BASE)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (ShapeConfig(layers=4), (4, 768, 12, 3072)),
        (ShapeConfig(layers=4, hidden=384), (4, 384, 6, 1536)),  # heads of 64, as the teacher's
        (ShapeConfig(layers=4, hidden=312), (4, 312, 12, 1248)),  # 64 does not divide 312, 12 does
        (ShapeConfig(layers=4, hidden=310), (4, 310, 10, 1240)),
        (ShapeConfig(layers=4, hidden=7), (4, 7, 7, 28)),
        (ShapeConfig(layers=20, hidden=1024), (20, 1024, 16, 4096)),
        (ShapeConfig(layers=4, heads=8, feed_forward=5), (4, 768, 8, 5)),
    ],
)
def test_what_is_not_given_follows_the_teacher(shape: ShapeConfig, expected: tuple[int, ...]) -> None:
    assert numbers(resolve_shape(shape, BERT_BASE)) == expected


@given(st.integers(1, 2048), st.integers(1, 16), st.integers(1, 64), st.integers(1, 4096))
def test_every_width_gets_heads_that_divide_it(hidden: int, heads: int, head_width: int, feed_forward: int) -> None:
    teacher = TeacherDims(2, heads * head_width, heads, feed_forward)
    shape = resolve_shape(ShapeConfig(layers=1, hidden=hidden), teacher)
    assert shape.heads is not None
    assert shape.feed_forward is not None
    assert hidden % shape.heads == 0
    assert shape.feed_forward >= 1


@pytest.mark.parametrize("given_name", ["T4tiny", "t4-tiny", "T4-TINY"])
def test_unknown_name_is_refused_with_the_nearest(given_name: str) -> None:
    """Before any model is looked at."""
    values = {"name": "x", "teacher": {"model": "bert"}, "student": {"shape": given_name}}
    with pytest.raises(ConfigError) as caught:
        build_experiment(values, check_files=False)
    (text,) = (str(problem) for problem in caught.value.problems if problem.key == "student.shape")
    assert repr(given_name) in text
    assert "did you mean 'T4-tiny'?" in text
    assert all(name in text for name in SHAPES)
    assert tuple(map(str, caught.value.problems)) == (text,)


def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"student\.shape\.heads: given 5; .*\(12\): 1, 2, 3, 4, 6, 12"):
        resolve_shape(ShapeConfig(layers=1, heads=5), TeacherDims(2, 12, 4, 24))


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "expected"),
    [
        ("even", 3, 12, (4, 8, 12)),
        ("even", 4, 6, (2, 3, 4, 6)),
        ("even", 12, 12, tuple(range(1, 13))),
        ("even", 1, 5, (5,)),
        ("first", 3, 12, (1, 2, 3)),
        ("last", 3, 12, (10, 11, 12)),
        ("skip", 6, 12, (1, 3, 5, 7, 9, 11)),
        ("skip", 5, 12, (1, 3, 5, 7, 9)),
        ((12, 1, 1), 3, 12, (12, 1, 1)),
        ([2], 1, 2, (2,)),
    ],
)
def test_layers_of_each_rule(
    rule: str | tuple[int, ...], student: int, teacher: int, expected: tuple[int, ...]
) -> None:
    assert pick_layers(rule, student, teacher) == expected


@given(st.sampled_from(sorted(START_RULES)), st.integers(1, 40), st.integers(0, 40))
def test_rules_take_each_layer_once_and_in_order(rule: str, student: int, more: int) -> None:
    teacher = student + more
    layers = pick_layers(rule, student, teacher)
    assert len(layers) == student
    assert list(layers) == sorted(set(layers))
    assert layers[0] >= 1
    assert layers[-1] <= teacher
    if rule == "stride" and teacher >= 2 * student:
        assert layers[-1] < teacher
    paired = [pair for pair in pair_layers(rule, student, teacher) if pair[0] > 0]
    assert list(enumerate(layers, start=1)) == paired, "a layer starts from the one that it would be compared with"


def test_the_older_name_of_a_rule_keeps_its_layers() -> None:
    for student, teacher in ((6, 12), (5, 12), (3, 12), (4, 4)):
        assert pick_layers("skip", student, teacher) == pick_layers("stride", student, teacher)
    for name in ("skip", "stride"):
        assert StudentConfig(shape="T3", init_layers=name).init_layers == name, "so run ids stay"
    with pytest.raises(ConfigError, match="allowed: even, first, last, stride"):
        pick_layers("last_inner", 2, 4)


@pytest.mark.parametrize(
    ("rule", "student", "message"),
    [
        ("evenly", 2, "did you mean 'even'"),
        ("last", 5, "set student.init=random"),
        ((1, 2, 3), 2, "for a student of 2"),
        ((1, 5), 2, r"given \[5\]; the teacher has layers 1 to 4"),
        ((0, 1), 2, r"given \[0\]"),
    ],
)
def test_layers_that_do_not_fit_are_refused(rule: str | tuple[int, ...], student: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        pick_layers(rule, student, 4)
    assert str(caught.value).startswith("student.init_layers: ")


def test_sizes_are_read_under_the_names_of_the_family() -> None:
    distilbert = SimpleNamespace(model_type="distilbert", n_layers=6, dim=768, n_heads=12, hidden_dim=3072)
    assert dims_of(distilbert) == TeacherDims(6, 768, 12, 3072)
    assert sizes_text(distilbert) == "distilbert, 6 layers x 768, 12 heads, feed-forward 3072"
    unknown = SimpleNamespace(
        model_type="new", num_hidden_layers=1, hidden_size=2, num_attention_heads=2, intermediate_size=None
    )
    with pytest.raises(ModelError, match=r"'new' has no number under intermediate_size.*bert") as caught:
        dims_of(unknown)
    assert all(family in str(caught.value) for family in FAMILIES)
    assert sizes_text(unknown) == "new"


def test_listing_shapes_loads_no_torch() -> None:
    code = "import sys, raybrew.models.shapes; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "set()"
