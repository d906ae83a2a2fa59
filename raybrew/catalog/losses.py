"""The losses by name: read-only tables that import no torch, for validation, `list` and `show`.

`entry.load()` imports and returns the function. Names resolve through these literals in every process, so nothing is
registered; a function of your own is reached as `package.module:function`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from raybrew.catalog.target import load_target

__all__ = ["KD_LOSSES", "MATCH_LOSSES", "RAW_LOSSES", "TEMPERATURES", "LossEntry", "kd_losses_of", "names_of"]


@dataclasses.dataclass(frozen=True)
class LossEntry:
    """One loss: where it is and what it takes."""

    name: str
    target: str  #: module:function
    per: str  #: value of the `Per` that its count follows from; KD losses count entries of their mask ("token")
    needs: str  #: what it compares: logits, pooled, hidden, attention, attention_probs, or qkv (queries, keys, values)
    summary: str  #: one line
    paper: str = ""
    pairs: bool = False  #: each side may be two layers
    own_masks: bool = False  #: takes `teacher_mask` too, so that each side may have tokens of its own
    of_rows: bool = False  #: also compares modules that give one vector per row
    same_width: bool = True  #: both sides need one width (hidden) or one number of heads (attention)
    temperature_power: int = 0  #: the gradient falls with T to this power; `scale_by_temperature_squared` undoes it
    outputs: tuple[str, ...] = ()  #: of KD losses, the outputs of tasks that they compare: classes, labels, numbers
    raw: bool = False  #: of KD losses: compares logits as they are, on which a temperature is a mere factor
    takes_zero: bool = False  #: of KD losses: takes a teacher's probability of 0 for what it is
    options: tuple[str, ...] = ()  #: keyword arguments that its section gives, by the same names
    divergence: str = ""  #: module:function with the same gradient that is 0 where both sides agree; empty: `target` is

    def load(self) -> Callable[..., Any]:
        """Imports the function (and with it torch)."""
        loss: Callable[..., Any] = load_target(self.target)
        return loss

    def load_divergence(self) -> Callable[..., Any]:
        """Imports the function that trains alike and is 0 where student and teacher agree."""
        loss: Callable[..., Any] = load_target(self.divergence or self.target)
        return loss


def names_of(table: Mapping[str, LossEntry]) -> tuple[str, ...]:
    """The names of a table, without further names of the same loss."""
    return tuple(name for name, entry in table.items() if name == entry.name)


def _by_name(*entries: LossEntry, **aliases: LossEntry) -> Mapping[str, LossEntry]:
    return MappingProxyType({**{entry.name: entry for entry in entries}, **aliases})


def kd_losses_of(outputs: str) -> tuple[str, ...]:
    """Names of the KD losses that compare such outputs, those that compare nothing else first."""
    found = [entry for entry in KD_LOSSES.values() if outputs in entry.outputs]
    return tuple(entry.name for entry in sorted(found, key=lambda entry: len(entry.outputs)))


def _kd(
    name: str,
    summary: str,
    paper: str,
    *,
    outputs: tuple[str, ...] = ("classes",),
    temperature_power: int = 2,
    divergence: str = "",
    options: tuple[str, ...] = (),
    takes_zero: bool = False,
    raw: bool = False,
) -> LossEntry:
    return LossEntry(
        name=name,
        target=f"raybrew.losses.logits:{name}",
        per="token",
        needs="logits",
        summary=summary,
        paper=paper,
        outputs=outputs,
        temperature_power=temperature_power,
        options=options,
        takes_zero=takes_zero,
        raw=raw,
        divergence=divergence and f"raybrew.losses.logits:{divergence}",
    )


#: Losses between teacher and student logits: f(student, teacher, mask, *, temperature, class_mask, ...).
KD_LOSSES: Mapping[str, LossEntry] = _by_name(
    _kd("ce", "cross entropy of the two softmaxes", "arXiv:1503.02531", divergence="kl", takes_zero=True),
    _kd("mse", "squared error of the logits", "arXiv:1312.6184", outputs=("classes", "labels", "numbers"), raw=True),
    _kd(
        "bce",
        "binary cross entropy of the two sigmoids, for multi-label tasks",
        "",
        outputs=("labels",),
        divergence="binary_kl",
    ),
    _kd("kl", "KL(teacher || student)", "arXiv:1503.02531", takes_zero=True),
    _kd("reverse_kl", "KL(student || teacher)", "arXiv:2306.08543"),
    _kd("js", "generalised Jensen-Shannon divergence with share beta", "arXiv:2306.13649", options=("beta",)),
    _kd("skew_kl", "KL(teacher || alpha teacher + (1 - alpha) student)", "arXiv:2402.03898", options=("alpha",)),
    _kd(
        "skew_reverse_kl",
        "KL(student || (1 - alpha) teacher + alpha student)",
        "arXiv:2402.03898",
        options=("alpha",),
    ),
    _kd("tv", "total variation distance of the two softmaxes", "arXiv:2307.15190", temperature_power=1),
)

#: KD losses of logits as they are.
RAW_LOSSES = tuple(name for name, entry in KD_LOSSES.items() if entry.raw)

_GRAM = LossEntry(
    name="gram",
    target="raybrew.losses.features:gram",
    per="row",
    needs="hidden",
    summary="squared error of S1^T S2 / length, a (dim, dim) matrix; alias fsp",
    paper="Yim et al., CVPR 2017",
    pairs=True,
    own_masks=True,
)
_MMD = LossEntry(
    name="mmd",
    target="raybrew.losses.features:mmd",
    per="pair",
    needs="hidden",
    summary="squared error of S1 S2^T / dim, a (length, length) matrix; widths may differ; alias nst",
    paper="arXiv:1707.01219",
    pairs=True,
    same_width=False,
)

#: Losses between teacher and student layers: f(student, teacher, mask).
MATCH_LOSSES: Mapping[str, LossEntry] = _by_name(
    LossEntry(
        name="hidden_mse",
        target="raybrew.losses.features:hidden_mse",
        per="token",
        needs="hidden",
        summary="squared error of hidden states",
        of_rows=True,
        paper="arXiv:1909.10351",
    ),
    LossEntry(
        name="cos",
        target="raybrew.losses.features:cos",
        per="token",
        needs="hidden",
        summary="1 - cosine of hidden states, token by token",
        of_rows=True,
        paper="arXiv:1910.01108",
    ),
    LossEntry(
        name="pkd",
        target="raybrew.losses.features:pkd",
        per="row",
        needs="hidden",
        summary="squared distance of the normalised first-token vectors",
        paper="arXiv:1908.09355",
        own_masks=True,
    ),
    _GRAM,
    _MMD,
    LossEntry(
        name="attention_mse",
        target="raybrew.losses.attention:attention_mse",
        per="pair",
        needs="attention",
        summary="squared error of attention scores, head by head",
        paper="arXiv:1909.10351",
    ),
    LossEntry(
        name="attention_mse_sum",
        target="raybrew.losses.attention:attention_mse_sum",
        per="pair",
        needs="attention",
        summary="squared error of attention scores summed over heads",
        same_width=False,
    ),
    LossEntry(
        name="attention_ce",
        target="raybrew.losses.attention:attention_ce",
        per="token",
        needs="attention",
        summary="cross entropy of attention distributions, head by head",
    ),
    LossEntry(
        name="attention_ce_mean",
        target="raybrew.losses.attention:attention_ce_mean",
        per="token",
        needs="attention",
        summary="cross entropy of attention distributions of the scores averaged over heads",
        same_width=False,
    ),
    LossEntry(
        name="attention_probs_mse",
        target="raybrew.losses.attention:attention_probs_mse",
        per="pair",
        needs="attention_probs",
        summary="squared error of attention probabilities, head by head",
    ),
    LossEntry(
        name="relation_kl",
        target="raybrew.losses.relations:relation_kl",
        per="token",
        needs="qkv",
        summary="KL of query, key, value or attention relations (MiniLM); keys relations, relation_heads",
        options=("relations", "relation_heads"),
        paper="arXiv:2002.10957, arXiv:2012.15828",
        pairs=True,
        same_width=False,
    ),
    LossEntry(
        name="pooled_mse",
        target="raybrew.losses.features:pooled_mse",
        per="row",
        needs="pooled",
        summary="squared error of pooled outputs, the vectors that the classifiers read",
    ),
    LossEntry(
        name="pooled_cos",
        target="raybrew.losses.features:pooled_cos",
        per="row",
        needs="pooled",
        summary="1 - cosine of pooled outputs",
    ),
    fsp=_GRAM,
    nst=_MMD,
)

#: Temperatures per item: f(student, teacher, base, **options, mask=mask).
TEMPERATURES: Mapping[str, LossEntry] = _by_name(
    LossEntry(
        name="constant",
        target="raybrew.losses.temperatures:constant",
        per="token",
        needs="logits",
        summary="the same for every item",
    ),
    LossEntry(
        name="flsw",
        target="raybrew.losses.temperatures:flsw",
        per="token",
        needs="logits",
        summary="lower where student and teacher point apart; options beta, gamma",
        options=("beta", "gamma"),
        paper="arXiv:1911.07471",
    ),
    LossEntry(
        name="cwsm",
        target="raybrew.losses.temperatures:cwsm",
        per="token",
        needs="logits",
        summary="lower where the student is unsure; option beta",
        options=("beta",),
        paper="arXiv:1911.07471",
    ),
)
