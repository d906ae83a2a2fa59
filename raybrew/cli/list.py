"""raybrew list: the names that may stand in an experiment file."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from raybrew.cli.options import AsJson
from raybrew.cli.terminal import print_json, results

__all__ = ["Family", "list_names"]


class Family(str, enum.Enum):
    """What can be listed."""

    methods = "methods"
    losses = "losses"
    matches = "matches"
    shapes = "shapes"
    initialisations = "initialisations"
    tasks = "tasks"
    metrics = "metrics"
    projections = "projections"
    formats = "formats"
    signals = "signals"
    searchers = "searchers"
    schedulers = "schedulers"
    trackers = "trackers"


def list_names(family: Annotated[Family, typer.Argument(help="What to list.")], as_json: AsJson = False) -> None:
    """Show what may stand in an experiment file, with the key that takes it."""
    key, rows = _FAMILIES[family]()
    if as_json:
        print_json([{"key": key, "name": name, "summary": text} for name, text in rows])
        return
    from rich.table import Table

    table = Table("name", "what it is", title=f"{family.value}, for {key}", title_justify="left", title_style="bold")
    table.columns[0].no_wrap = True
    for name, text in rows:
        table.add_row(name, text)
    results().print(table, markup=False)


Rows = list[tuple[str, str]]

#: How parts of the user's are written.
_OWN_FUNCTION = "package.module:function"
_OWN_ROW = "package.module:Name"


def _methods() -> tuple[str, Rows]:
    from raybrew.catalog.methods import METHODS

    rows = []
    for name, method in METHODS.items():
        parts = [f"{method.summary} ({method.source})" if method.source else method.summary]
        if method.starts:
            starts = ", ".join(f"student.{key}={value}" for key, value in method.starts.items())
            parts.append(f"Its students start by {starts}.")
        if method.differs:
            parts.append(f"Not as published: {method.differs}.")
        if method.figures:
            parts.append("Published: " + "; ".join(map(str, method.figures)) + ".")
        rows.append((name, "\n".join(parts)))
    return "distill.method", [*rows, (_OWN_ROW, "a Method of your own")]


def _losses() -> tuple[str, Rows]:
    from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES
    from raybrew.catalog.signals import KINDS
    from raybrew.config.matches import MatchConfig
    from raybrew.config.terms import KDLossConfig

    def line(entry: Any) -> str:
        return f"{entry.summary} ({entry.paper})" if entry.paper else str(entry.summary)

    usable = _choices(KDLossConfig, "kind"), _choices(MatchConfig, "loss")
    rows = [("auto", "logits: ce, but bce for multilabel and mse for regression")]
    rows += [(name, f"logits: {line(KD_LOSSES[name])}") for name in usable[0] if name != "auto"]
    for name in usable[1]:
        entry = MATCH_LOSSES[name]
        of_rows = entry.needs in KINDS and KINDS[entry.needs].first_layer is None
        rows.append((name, f"{'rows' if of_rows else 'layers'}: {line(entry)}"))
    rows.append(("distill.emd", "all layers against all by the earth mover's distance (arXiv:2010.06133); a section"))
    rows.append((_OWN_FUNCTION, "logits, layers or rows: a function of your own (README)"))
    return "distill.kd_loss.kind (logits) and distill.matches[].loss (layers, rows)", rows


def _matches() -> tuple[str, Rows]:
    from raybrew.catalog.layer_rules import LAYER_RULES
    from raybrew.catalog.match_names import MATCH_NAMES, match_set

    rows = [(name, rule.summary) for name, rule in LAYER_RULES.items()]
    rows.append(("[[s, t], ...]", "these pairs of layers, 0 = embeddings (of hidden states)"))
    rows.append((_OWN_FUNCTION, "f(student layers, teacher layers) of your own, which returns such pairs"))
    for name in MATCH_NAMES:
        meant = match_set(name)
        if meant is not None:
            depth = f"{meant.depth} layers"
            rows.append((name, f"a whole match: {meant.loss} by the rule `even`, for students of {depth}"))
    return "distill.matches[].layers (rules) and distill.matches[] (TextBrewer's names)", rows


def _shapes() -> tuple[str, Rows]:
    from raybrew.catalog.shapes import RECURRENT_SHAPES, SHAPES

    recurrent = [(name, shape.summary) for name, shape in RECURRENT_SHAPES.items()]
    rows = [
        (
            name,
            f"{shape.layers} layers x {shape.hidden}, {shape.heads} heads, feed-forward {shape.feed_forward}: "
            f"{shape.summary}",
        )
        for name, shape in SHAPES.items()
    ]
    return "student.shape", [*rows, *recurrent, (_OWN_ROW, "a NamedShape of your own")]


def _initialisations() -> tuple[str, Rows]:
    from raybrew.catalog.initialisations import AUTO_INIT, INITIALISATIONS
    from raybrew.catalog.layer_rules import LAYER_RULES, OLD_INIT_RULES, START_RULES

    auto = f"{AUTO_INIT[True]} where the shape is as wide as its teacher, else {AUTO_INIT[False]}"
    rows = [("auto", f"weights: {auto}")]
    rows += [(name, f"weights: {row.summary}") for name, row in INITIALISATIONS.items()]
    rows += [(name, f"layers: {LAYER_RULES[name].summary}") for name in START_RULES]
    rows += [(name, f"layers: the older name of {new} here") for name, new in OLD_INIT_RULES.items()]
    rows.append(("[1, 4, ...]", "layers: these teacher layers, counted from 1"))
    rows.append((_OWN_FUNCTION, "weights: f(student, teacher, layers) of your own; layers: a rule, as for matches"))
    return "student.init (weights) and student.init_layers (layers)", rows


def _tasks() -> tuple[str, Rows]:
    from raybrew.config.kinds import MULTI
    from raybrew.config.multi_task import MultiTaskConfig
    from raybrew.config.task import TASK_CONFIGS

    configs = {**TASK_CONFIGS, MULTI: MultiTaskConfig}
    rows = [(kind, (config.__doc__ or "").splitlines()[0]) for kind, config in configs.items()]
    return "task.kind", [*rows, (_OWN_ROW, "a TaskSpec of your own")]


def _metrics() -> tuple[str, Rows]:
    from raybrew.catalog.metrics import METRICS
    from raybrew.config.task import TASK_CONFIGS

    tasks = {
        name: [kind for kind, config in TASK_CONFIGS.items() if name in _choices(config, "metric")] for name in METRICS
    }
    rows = [(name, f"{about} ({', '.join(tasks[name])})") for name, about in METRICS.items()]
    return "task.metric", [*rows, ("mean", "mean over tasks of each one's own metric (multi)")]


def _projections() -> tuple[str, Rows]:
    from raybrew.catalog.projections import PROJECTIONS

    rows = [("auto", "linear where widths differ and the loss needs them equal, else none"), ("none", "no projection")]
    return "distill.matches[].projection", rows + [(name, entry.summary) for name, entry in PROJECTIONS.items()]


def _formats() -> tuple[str, Rows]:
    from raybrew.config.data import FORMATS

    about = {
        "auto": "by the name of each source",
        "csv": "comma-separated with a header, RFC 4180 quoting; .gz as well",
        "tsv": "tab-separated with a header, no quoting (as GLUE's files); .gz as well",
        "jsonl": "one JSON object a line; .gz as well",
        "conll": "a word and its tag a line, a blank line after each sentence (tagging); .gz as well",
        "parquet": "Parquet files",
        "arrow": "Arrow IPC files or streams",
        "dataset": "a folder of `datasets.save_to_disk`, `:split` for one of several",
        "hub": "a dataset of the Hugging Face hub, such as glue/sst2, `:split` for another than the usual one",
    }
    return "data.format", [(name, about[name]) for name in FORMATS]


def _signals() -> tuple[str, Rows]:
    from raybrew.catalog.signals import KINDS

    rows = [(name if kind.first_layer is None else f"{name}.NN", kind.summary) for name, kind in KINDS.items()]
    return "store.signals (NN: number of a layer)", rows


def _searchers() -> tuple[str, Rows]:
    from raybrew.catalog.searchers import SEARCHERS

    return "sweep.search.kind", [*_with_options(SEARCHERS), (_OWN_ROW, "a Searcher of your own")]


def _schedulers() -> tuple[str, Rows]:
    from raybrew.catalog.schedulers import SCHEDULERS

    return "sweep.scheduler.kind", [*_with_options(SCHEDULERS), (_OWN_ROW, "a Scheduler of your own")]


def _trackers() -> tuple[str, Rows]:
    from raybrew.catalog.trackers import TRACKERS

    rows = [
        (name, f"{spec.summary} (pip install '{spec.install}')" if spec.install else spec.summary)
        for name, spec in TRACKERS.items()
    ]
    return "tracking", [*rows, (_OWN_ROW, "in tracking.others: a TrackerSpec of your own")]


def _with_options(table: Mapping[str, Any]) -> Rows:
    """Rows with the keys that each reads."""
    return [
        (name, f"{row.summary}; keys {', '.join(row.options)}" if row.options else row.summary)
        for name, row in table.items()
    ]


def _choices(section: Any, field: str) -> tuple[str, ...]:
    from typing import get_args

    annotation = section.model_fields[field].annotation
    choices = get_args(annotation)
    # Of names or something else, the names.
    return choices if all(isinstance(each, str) for each in choices) else get_args(choices[0])


_FAMILIES: dict[Family, Callable[[], tuple[str, Rows]]] = {
    Family.methods: _methods,
    Family.losses: _losses,
    Family.matches: _matches,
    Family.shapes: _shapes,
    Family.initialisations: _initialisations,
    Family.tasks: _tasks,
    Family.metrics: _metrics,
    Family.projections: _projections,
    Family.formats: _formats,
    Family.signals: _signals,
    Family.searchers: _searchers,
    Family.schedulers: _schedulers,
    Family.trackers: _trackers,
}
