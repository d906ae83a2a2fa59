"""Which layers are compared, for any two depths, and what a match asks of both models."""

from __future__ import annotations

import pytest
import torch

from raybrew.config import DistillConfig, MatchConfig
from raybrew.distillers.matches import pair_layers, resolve_matches
from raybrew.distillers.objective import build_objective
from raybrew.errors import ConfigError, LossError
from raybrew.signals import LOGITS, Signal, parse_signal, sorted_signals


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "pairs"),
    [
        ("even", 3, 12, [(0, 0), (1, 4), (2, 8), (3, 12)]),
        ("even", 3, 6, [(0, 0), (1, 2), (2, 4), (3, 6)]),
        ("even", 4, 12, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        ("last", 3, 12, [(1, 10), (2, 11), (3, 12)]),
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
    assert "student layer 5 does not exist; allowed: 0..4" in caught.value.problems[0]
    assert "teacher layer 13 does not exist; allowed: 0..12" in caught.value.problems[1]
    with pytest.raises(ConfigError, match="needs a student no deeper than its teacher"):
        resolve_matches((MatchConfig(loss="cos"),), 6, 4)


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
    given = [Signal("hidden", 2), LOGITS, Signal("attention", 0), Signal("hidden", 10), LOGITS]
    assert [str(s) for s in sorted_signals(given)] == ["logits", "attention.00", "hidden.02", "hidden.10"]
    for wrong in ("hidden", "logits.1", "hiddn.1", "hidden.x", ""):
        with pytest.raises(ValueError, match=r"signal|layers"):
            parse_signal(wrong)
