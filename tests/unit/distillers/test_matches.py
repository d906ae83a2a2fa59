"""Which layers are compared, for any two depths, and what a match asks of both models."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from raybrew.catalog.layer_rules import LAYER_RULES
from raybrew.catalog.losses import MATCH_LOSSES
from raybrew.catalog.match_names import MATCH_NAMES, MATCH_SETS, match_set
from raybrew.config import DistillConfig, MatchConfig
from raybrew.config.loading import build_experiment
from raybrew.distillers.matches import pair_layers, resolve_matches
from raybrew.distillers.objective import build_objective
from raybrew.errors import ConfigError, LossError
from raybrew.losses.attention import attention_probs_mse
from raybrew.losses.features import pooled_mse
from raybrew.losses.relations import relation_kl
from raybrew.signals import LOGITS, POOLED, Signal, parse_signal, sorted_signals
from tests.told import told


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "pairs"),
    [
        ("even", 3, 12, [(0, 0), (1, 4), (2, 8), (3, 12)]),
        ("even", 3, 6, [(0, 0), (1, 2), (2, 4), (3, 6)]),
        ("even", 4, 12, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        ("last", 3, 12, [(1, 10), (2, 11), (3, 12)]),
        ("last_inner", 6, 12, [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        ("final", 4, 12, [(4, 12)]),
        ([[0, 0], [2, 7]], 4, 12, [(0, 0), (2, 7)]),
    ],
)
def test_rules(rule: object, student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert pair_layers(rule, student, teacher) == pairs  # type: ignore[arg-type]


def test_layers_that_do_not_exist_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_matches((MatchConfig(loss="cos", layers=((5, 1), (1, 13))), MatchConfig(loss="cos")), 4, 12)
    assert len(caught.value.problems) == 2
    assert "student layer 5 does not exist; allowed: 0..4" in str(caught.value.problems[0])
    assert "teacher layer 13 does not exist; allowed: 0..12" in str(caught.value.problems[1])
    with pytest.raises(ConfigError, match="needs a student no deeper than its teacher"):
        resolve_matches((MatchConfig(loss="cos"),), 6, 4)
    (last,) = resolve_matches((MatchConfig(loss="cos", layers="final"),), 6, 4)
    assert (last.student.layer, last.teacher.layer) == (6, 4)


def pairs_of(name: str, student: int, teacher: int) -> list[tuple[str, int | None, int | None]]:
    matches = resolve_matches((MatchConfig.model_validate(name),), student, teacher)
    return [(match.loss, match.student.layer, match.teacher.layer) for match in matches]


@pytest.mark.parametrize(
    ("name", "student", "teacher", "loss", "pairs"),
    [
        # As TextBrewer's own lists say for a teacher of 12 layers ...
        ("L3_hidden_mse", 3, 12, "hidden_mse", [(0, 0), (1, 4), (2, 8), (3, 12)]),
        ("L3_hidden_smmd", 3, 12, "mmd", [(0, 0), (1, 4), (2, 8), (3, 12)]),
        ("L3n_hidden_mse", 3, 12, "hidden_mse", [(0, 0), (1, 4), (2, 8), (3, 12)]),
        ("L3_attention_ce_mean", 3, 12, "attention_ce_mean", [(1, 4), (2, 8), (3, 12)]),
        ("L4_hidden_smmd", 4, 12, "mmd", [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        ("L4t_hidden_mse", 4, 12, "hidden_mse", [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        ("L4t_hidden_sgram", 4, 12, "gram", [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        ("L4_attention_mse_sum", 4, 12, "attention_mse_sum", [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("L6_hidden_mse", 6, 12, "hidden_mse", [(i, 2 * i) for i in range(7)]),
        ("small_hidden_smmd", 12, 12, "mmd", [(i, i) for i in range(13)]),
        # ... and what that means for others.
        ("L3_hidden_mse", 3, 6, "hidden_mse", [(0, 0), (1, 2), (2, 4), (3, 6)]),
        ("L3_hidden_smmd", 3, 24, "mmd", [(0, 0), (1, 8), (2, 16), (3, 24)]),
        ("L3_attention_mse", 3, 6, "attention_mse", [(1, 2), (2, 4), (3, 6)]),
        ("small_hidden_mse", 12, 24, "hidden_mse", [(i, 2 * i) for i in range(13)]),
        ("L2_attention_ce", 2, 4, "attention_ce", [(1, 2), (2, 4)]),
    ],
)
def test_textbrewers_names_are_rules(
    name: str, student: int, teacher: int, loss: str, pairs: list[tuple[int, int]]
) -> None:
    assert pairs_of(name, student, teacher) == [(loss, *pair) for pair in pairs]


def test_names_stand_beside_sections_and_add_projections_where_widths_differ() -> None:
    config = DistillConfig.model_validate(
        {"matches": ["L3n_hidden_mse", {"preset": "L3_hidden_smmd", "weight": 0.5}, {"loss": "pkd", "layers": "final"}]}
    )
    assert config.matches[0].weight == 1.0
    assert DistillConfig.model_validate(config.model_dump(mode="json")) == config
    for teacher_layers in (6, 12):
        matches = resolve_matches(config.matches, 3, teacher_layers)
        step = teacher_layers // 3
        expected = [f"{loss}.{i}-{step * i}" for loss in ("hidden_mse", "mmd") for i in range(4)]
        narrow = build_objective(config, matches, {m.student: 4 for m in matches}, {m.teacher: 8 for m in matches})
        assert narrow.names == ("kd", *expected, f"pkd.3-{teacher_layers}")
        assert len(narrow.projections) == 5  # four for hidden_mse, one for pkd; mmd needs none
        assert [term.weight for term in narrow.terms] == [1.0] * 5 + [0.5] * 4 + [1.0]
        wide = build_objective(config, matches, {m.student: 8 for m in matches}, {m.teacher: 8 for m in matches})
        assert len(wide.projections) == 0


def test_a_name_for_another_depth_is_refused() -> None:
    named = tuple(MatchConfig.model_validate(name) for name in ("L6_hidden_mse", "L3_hidden_mse", "small_hidden_smmd"))
    with pytest.raises(ConfigError) as caught:
        resolve_matches(named, 3, 12)
    assert told(caught.value) == ["distill.matches.0.preset: unfit", "distill.matches.2.preset: unfit"]
    assert "3" in caught.value.problems[0].message
    assert "12" in caught.value.problems[1].message


def test_every_name_is_one_and_means_a_loss_that_exists() -> None:
    assert len(MATCH_NAMES) == len(set(MATCH_NAMES)) == 18
    for name in MATCH_NAMES:
        found = match_set(name)
        assert found is not None
        match = MatchConfig.model_validate(name)
        assert (match.loss, match.layers, match.preset) == (found.loss, "even", name)
        assert match.compares == MATCH_LOSSES[found.loss].needs
    assert set(MATCH_SETS.values()) <= set(MATCH_LOSSES)
    for wrong in ("L3_hidden", "hidden_mse", "L0_hidden_mse", "L3_hidden_mse ", "l3_hidden_mse", "small3_hidden_mse"):
        assert match_set(wrong) is None


def test_names_and_attention_losses_are_listed() -> None:
    import json

    from typer.testing import CliRunner

    from raybrew.cli.main import app

    def listed(family: str) -> list[str]:
        result = CliRunner().invoke(app, ["list", family, "--json"])
        assert result.exit_code == 0, result.output
        return [row["name"] for row in json.loads(result.stdout)]

    given = ["[[s, t], ...]", "package.module:function"]
    assert listed("matches") == [*LAYER_RULES, *given, *MATCH_NAMES]
    assert {name for name, entry in MATCH_LOSSES.items() if entry.needs == "attention"} <= set(listed("losses"))


def test_a_pair_that_comes_twice_is_refused() -> None:
    """Two terms of one name would hide each other in the log, and so would their projections."""
    twice = (MatchConfig(loss="hidden_mse"), MatchConfig(loss="hidden_mse", layers="final", weight=2.0))
    with pytest.raises(ConfigError, match=r"distill.matches.1.layers: hidden_mse.2-4 is matched twice"):
        resolve_matches(twice, 2, 4)


def test_attention_layers_begin_with_one() -> None:
    for rule, pairs in (("even", [(1, 2), (2, 4)]), ("last", [(1, 3), (2, 4)]), ("final", [(2, 4)])):
        matches = resolve_matches((MatchConfig(loss="attention_mse", layers=rule),), 2, 4)  # type: ignore[arg-type]
        assert [(match.student, match.teacher) for match in matches] == [
            (Signal("attention", student), Signal("attention", teacher)) for student, teacher in pairs
        ]
    with pytest.raises(ConfigError, match=r"student layer 0 does not exist; allowed: 1..2"):
        resolve_matches((MatchConfig(loss="attention_mse", layers=((0, 1),)),), 2, 4)


@pytest.mark.parametrize("loss", ["attention_mse", "attention_ce", "attention_mse_sum", "attention_ce_mean"])
def test_heads_may_differ_only_where_they_are_joined(loss: str) -> None:
    config = DistillConfig(matches=(MatchConfig(loss=loss, layers="final"),))  # type: ignore[arg-type]
    (match,) = matches = resolve_matches(config.matches, 2, 4)
    if MATCH_LOSSES[loss].same_width:
        with pytest.raises(LossError, match=rf"{loss}.2-4: the student has 2 attention heads, the teacher 12"):
            build_objective(config, matches, {match.student: 2}, {match.teacher: 12})
    objective = build_objective(config, matches, {match.student: 2}, {match.teacher: 2})
    assert objective.student_request == {LOGITS, Signal("attention", 2)}
    assert len(objective.projections) == 0
    if not MATCH_LOSSES[loss].same_width:
        objective = build_objective(config, matches, {match.student: 2}, {match.teacher: 12})
        student = {LOGITS: torch.randn(2, 3), match.student: torch.randn(2, 2, 5, 5)}
        teacher = {LOGITS: torch.randn(2, 3), match.teacher: torch.randn(2, 12, 5, 5)}
        batch = {"attention_mask": torch.ones(2, 5), "logits_mask": torch.ones(2), "labels": torch.zeros(2)}
        assert torch.isfinite(objective(student, teacher, batch)[1].sum)
        with pytest.raises(LossError, match=r"\(2, 2, 5, 5\) and teacher \(2, 12, 4, 4\) are not over the same tokens"):
            objective(student, {**teacher, match.teacher: torch.randn(2, 12, 4, 4)}, batch)


def test_probability_shift_and_temperatures_of_a_file_are_those_of_the_losses() -> None:
    from raybrew.losses import logits, temperatures

    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    batch = {
        "attention_mask": torch.ones(5, 2),
        "logits_mask": torch.tensor([1.0, 1, 1, 1, 0]),
        "labels": torch.tensor([0, 2, 1, -1, 0]),
    }

    def loss(**settings: object) -> torch.Tensor:
        objective = build_objective(DistillConfig.model_validate({"temperature": 3.0, **settings}))
        return objective({LOGITS: student}, {LOGITS: teacher}, batch)[0].sum

    mask = batch["logits_mask"]
    shifted = logits.probability_shift(teacher, batch["labels"])
    assert not torch.equal(shifted[:4], teacher[:4])
    squared = {"scale_by_temperature_squared": True}
    expected = logits.kl(student, shifted, mask, temperature=3.0, **squared).sum
    assert torch.equal(loss(probability_shift=True), expected)
    each = temperatures.flsw(student, shifted, 3.0, 2.0, 1.5, mask=mask)
    assert float(each[:4].std()) > 0.1
    expected = logits.kl(student, shifted, mask, temperature=each, **squared).sum
    flsw = {"kind": "flsw", "beta": 2.0, "gamma": 1.5}
    assert torch.equal(loss(probability_shift=True, temperature_schedule=flsw), expected)
    each = temperatures.flsw(student, teacher, 3.0, 1.0, 1.0, mask=mask)
    expected = logits.kl(student, teacher, mask, temperature=each, **squared).sum
    assert torch.equal(loss(temperature_schedule={"kind": "flsw"}, kd_loss={"kind": "kl"}), expected)
    each = temperatures.cwsm(student, teacher, 3.0, 2.0, mask=mask)
    for name in ("ce", "mse", "kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tv"):
        shown = "kl" if name == "ce" else name
        expected = getattr(logits, shown)(student, teacher, mask, temperature=each, **squared).sum
        given = loss(temperature_schedule={"kind": "cwsm", "beta": 2.0}, kd_loss={"kind": name})
        torch.testing.assert_close(given, expected)


def test_the_objective_asks_for_what_it_compares() -> None:
    config = DistillConfig(matches=(MatchConfig(loss="hidden_mse"), MatchConfig(loss="mmd", layers="final")))
    matches = resolve_matches(config.matches, 2, 4)
    objective = build_objective(config, matches, {m.student: 8 for m in matches}, {m.teacher: 12 for m in matches})
    assert objective.names == ("kd", "hidden_mse.0-0", "hidden_mse.1-2", "hidden_mse.2-4", "mmd.2-4")
    assert objective.teacher_request == {LOGITS, *(Signal("hidden", layer) for layer in (0, 2, 4))}
    # Projections where widths differ and the loss needs them equal; mmd compares (length, length) matrices.
    assert len(objective.projections) == 3
    same = build_objective(config, matches, {m.student: 8 for m in matches}, {m.teacher: 8 for m in matches})
    assert len(same.projections) == 0


def test_projections_start_from_the_seed() -> None:
    config = DistillConfig(matches=(MatchConfig(loss="hidden_mse"),))
    matches = resolve_matches(config.matches, 2, 4)

    def weights(seed: int) -> torch.Tensor:
        dims = {m.student: 8 for m in matches}, {m.teacher: 12 for m in matches}
        return torch.cat([p.flatten() for p in build_objective(config, matches, *dims, seed=seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_widths_that_differ_without_a_projection_are_refused() -> None:
    config = DistillConfig(matches=(MatchConfig(loss="hidden_mse", layers="final", projection="none"),))
    matches = resolve_matches(config.matches, 2, 4)
    with pytest.raises(LossError, match=r"hidden_mse.2-4: the student's layer is 8 wide, the teacher's 12"):
        build_objective(config, matches, {matches[0].student: 8}, {matches[0].teacher: 12})


def test_class_counts_that_differ_are_named_with_both_shapes() -> None:
    objective = build_objective(DistillConfig())
    batch = {"logits_mask": torch.ones(2), "labels": torch.zeros(2), "attention_mask": torch.ones(2, 3)}
    with pytest.raises(LossError, match=r"kd: student logits \(2, 3\) and teacher logits \(2, 4\)"):
        objective({LOGITS: torch.zeros(2, 3)}, {LOGITS: torch.zeros(2, 4)}, batch)


def test_counts_are_those_of_the_terms() -> None:
    """Denominators come from masks before the forward pass; each must equal the count its loss reports."""
    losses = ("hidden_mse", "cos", "pkd", "gram", "mmd")
    config = DistillConfig(
        hard_label_weight=1.0,
        matches=tuple(MatchConfig(loss=loss, layers="final") for loss in losses),  # type: ignore[arg-type]
    )
    matches = resolve_matches(config.matches, 1, 1)
    objective = build_objective(config, matches, {m.student: 4 for m in matches}, {m.teacher: 4 for m in matches})
    batch = {
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]),
        "logits_mask": torch.tensor([1.0, 1.0, 0.0]),
        "labels": torch.tensor([1, -1, 0]),
    }
    signals = {LOGITS: torch.randn(3, 2), Signal("hidden", 1): torch.randn(3, 3, 4)}
    terms = objective(signals, signals, batch)
    denominators = objective.denominators(objective.counts(batch))
    assert [float(term.count) for term in terms] == denominators
    assert dict(zip(objective.names, denominators, strict=True)) == {
        "kd": 2, "label": 1, "hidden_mse.1-1": 5, "cos.1-1": 5, "pkd.1-1": 2, "gram.1-1": 2, "mmd.1-1": 13,
    }  # fmt: skip


def test_signal_names() -> None:
    assert [parse_signal(text).name for text in ("logits", "hidden.08", "hidden[8]")] == [
        "logits",
        "hidden.08",
        "hidden.08",
    ]
    given = [Signal("hidden", 2), LOGITS, Signal("attention", 1), Signal("hidden", 10), POOLED, LOGITS]
    assert [str(s) for s in sorted_signals(given)] == ["logits", "pooled", "attention.01", "hidden.02", "hidden.10"]
    for wrong in ("hidden", "logits.1", "pooled.1", "attention.00", "value.00", "query", "hiddn.1", "hidden.x", ""):
        with pytest.raises(ValueError, match=r"signal|layers"):
            parse_signal(wrong)


def test_relations_are_a_match_each_and_attention_takes_the_keys() -> None:
    value = {"loss": "relation_kl", "layers": "final", "relations": ["attention", "value"], "relation_heads": 2}
    first, second = resolve_matches((MatchConfig.model_validate(value),), 2, 4)
    assert (first.name, second.name) == ("relation_kl_attention.2-4", "relation_kl_value.2-4")
    assert first.student_signals == (Signal("query", 2), Signal("key", 2))
    assert first.teacher_signals == (Signal("query", 4), Signal("key", 4))
    assert second.teacher_signals == (Signal("value", 4),)
    even = resolve_matches((MatchConfig(loss="relation_kl"),), 2, 4)
    assert [match.name for match in even] == [
        f"relation_kl_{kind}.{pair}" for pair in ("1-2", "2-4") for kind in ("query", "key", "value")
    ]


def test_every_match_loss_says_what_it_compares() -> None:
    usable = get_args(get_args(MatchConfig.model_fields["loss"].annotation)[0])
    assert len(usable) == 13
    for name in usable:
        assert MatchConfig(loss=name).compares == MATCH_LOSSES[name].needs


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({"loss": "pooled_mse", "layers": "last"}, "layers: given for pooled_mse, which compares one vector per row"),
        ({"loss": "relation_kl", "layers": [[0, 1]]}, r"layers: given \[0, 1\]; allowed: .* counted from 1"),
        ({"loss": "relation_kl", "projection": "linear"}, "projection: given 'linear' for relation_kl"),
        ({"loss": "relation_kl", "relations": []}, r"relations: given \[\]; allowed: some of query, key"),
        ({"loss": "relation_kl", "relations": ["key", "key"]}, "relations: .*each once"),
        ({"loss": "cos", "relation_heads": 2}, "relation_heads: given for cos; it is of relation_kl"),
        ({"loss": "cos", "relations": ["key"]}, "relations: given for cos; it is of relation_kl"),
    ],
)
def test_options_of_other_losses_are_refused(match: dict[str, Any], words: str) -> None:
    values = {"name": "x", "teacher": {"model": "t"}, "student": {"model": "s"}, "distill": {"matches": [match]}}
    with pytest.raises(ConfigError, match=f"distill.matches.0.{words}"):
        build_experiment(values)


def test_relation_and_pooled_terms_are_what_the_losses_give() -> None:
    matches = resolve_matches(
        (
            MatchConfig(loss="relation_kl", layers="final", relations=("attention", "value")),
            MatchConfig(loss="pooled_mse"),
            MatchConfig(loss="attention_probs_mse", layers="final"),
        ),
        1,
        2,
    )
    signals = [match.student for match in matches] + [match.teacher for match in matches]
    width = {signal: 4 if signal.kind != "attention_probs" else 2 for signal in signals}
    objective = build_objective(DistillConfig(kd_weight=0), matches, width, width, teacher_heads=2)
    assert {signal.name for signal in objective.teacher_request} == {
        "query.02", "key.02", "value.02", "pooled", "attention_probs.02",
    }  # fmt: skip
    torch.manual_seed(0)
    student = {s: torch.randn(3, 5, 4) for s in (Signal("query", 1), Signal("key", 1), Signal("value", 1))}
    teacher = {s: torch.randn(3, 5, 4) for s in (Signal("query", 2), Signal("key", 2), Signal("value", 2))}
    for side, layer in ((student, 1), (teacher, 2)):
        side[POOLED] = torch.randn(3, 4)
        side[Signal("attention_probs", layer)] = torch.rand(3, 2, 5, 5)
    batch = {
        "attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 5]),
        "logits_mask": torch.tensor([1.0, 1.0, 0.0]),
        "labels": torch.tensor([0, 1, 0]),
    }
    terms = dict(zip(objective.names, objective(student, teacher, batch), strict=True))
    mask = batch["attention_mask"] * batch["logits_mask"].unsqueeze(-1)
    expected = {
        "relation_kl_attention.1-2": relation_kl(
            (student[Signal("query", 1)], student[Signal("key", 1)]),
            (teacher[Signal("query", 2)], teacher[Signal("key", 2)]),
            mask,
            num_heads=2,
        ),
        "relation_kl_value.1-2": relation_kl(
            student[Signal("value", 1)], teacher[Signal("value", 2)], mask, num_heads=2
        ),
        "pooled_mse": pooled_mse(student[POOLED][:2], teacher[POOLED][:2]),
        "attention_probs_mse.1-2": attention_probs_mse(
            student[Signal("attention_probs", 1)], teacher[Signal("attention_probs", 2)], mask
        ),
    }
    assert set(terms) == set(expected)
    counts = objective.denominators(objective.counts(batch))
    for (name, term), count in zip(terms.items(), counts, strict=True):
        torch.testing.assert_close(term.sum, expected[name].sum)
        assert float(term.count) == float(expected[name].count) == count
    assert float(terms["relation_kl_value.1-2"].sum) > 0


def test_heads_that_do_not_divide_are_refused_with_those_that_do() -> None:
    (match,) = resolve_matches((MatchConfig(loss="relation_kl", layers="final", relations=("value",)),), 1, 2)
    with pytest.raises(LossError, match=r"the teacher's 4 heads do not divide .* 6 and .* 8; .* one of 1, 2"):
        build_objective(DistillConfig(), (match,), {match.student: 6}, {match.teacher: 8}, teacher_heads=4)
