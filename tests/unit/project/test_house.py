"""Rules of the house: what the code as a whole keeps to, read from its syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from raybrew.catalog.initialisations import INITIALISATIONS
from raybrew.catalog.layer_rules import LAYER_RULES
from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES, TEMPERATURES
from raybrew.catalog.methods import METHODS
from raybrew.catalog.schedulers import SCHEDULERS
from raybrew.catalog.searchers import SEARCHERS
from raybrew.catalog.shapes import RECURRENT_SHAPES, SHAPES
from raybrew.catalog.signals import KINDS
from raybrew.catalog.tasks import TASKS
from raybrew.catalog.trackers import TRACKERS

PACKAGE = Path(__file__).parents[3] / "raybrew"

#: Names under which sentences for people travel.
_SENTENCES = {"error", "errors", "message", "note", "notes", "caution", "cautions", "problem", "problems"}
_LOOKS = {"startswith", "endswith", "split", "partition", "rpartition", "find", "index", "count", "match", "search"}


def _is_sentence(node: ast.expr) -> bool:
    """Whether an expression is the text of an error or of another sentence: `str(error)`, `trial.error`, `message`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("str", "repr"):
        return any(_is_sentence(argument) for argument in node.args)
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value in ("error", "message")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        return any(isinstance(key, ast.Constant) and key.value in ("error", "message") for key in node.args[:1])
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in _SENTENCES


def sentences_read(source: str) -> Iterator[int]:
    """Lines where a decision is made by the words of a sentence."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)
            contained = any(isinstance(op, ast.In | ast.NotIn) and _is_sentence(right) and words
                            for op, right in zip(node.ops, node.comparators, strict=True))  # fmt: skip
            equal = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
            if contained or (equal and words and any(map(_is_sentence, sides))):
                yield node.lineno
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _LOOKS
            and any(map(_is_sentence, [node.func.value, *node.args]))
        ):
            yield node.lineno


def test_no_decision_is_made_by_the_words_of_a_sentence() -> None:
    """Steps, errors and states of trials travel as fields: a sentence may be put better at any time."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for folder in ("sweeps", "records", "reports", "tracking")
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for line in sentences_read(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_such_decisions_are_seen() -> None:
    seen = (
        'if "another process" in str(error): pass',
        'lasting = str(trial.error).split(":")[0] in LASTING',
        'words = str(record.get("message", "")).split()',
        'if note.startswith("warning"): pass',
        'if record["message"] == "finished": pass',
        're.search("step ([0-9]+)", message)',
    )
    assert [list(sentences_read(each)) for each in seen] == [[1]] * len(seen)
    unseen = ("first = str(error).strip().splitlines()[0]", "raise RunError(str(error))", 'if kind == "error": pass')
    assert [list(sentences_read(each)) for each in unseen] == [[]] * len(unseen)


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports: at its head, in functions and for types alike."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.add(inner if inner in modules else node.module)
    return found & modules.keys()


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, in any number of steps."""
    graph = {name: set(imported) - {name} for name, imported in imports.items()}
    while True:
        # What imports nothing that is left, or is imported by nothing that is left, is in no circle.
        imported = set().union(*graph.values()) if graph else set()
        ends = {name for name, others in graph.items() if not others or name not in imported}
        if not ends:
            return [sorted(graph)] if graph else []
        graph = {name: others - ends for name, others in graph.items() if name not in ends}


def test_no_module_imports_in_a_circle() -> None:
    """Imports within functions and for types counted: whoever reads one module need not read the other first."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert not circles({name: imports_of(path, modules) for name, path in modules.items()})


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}) == [["b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


#: Names of the catalogue that are words of other things too: an option, a key, a family of models. They cannot be told
#: apart, so that a member by such a name may stand elsewhere unseen.
_WORDS = {
    *("kd", "labels", "emd", "theseus", "textbrewer", "distilbert"),
    *("even", "first", "last", "skip", "stride", "final", "none", "random", "grid", "teacher", "constant"),
    *("logits", "hidden", "attention", "query", "key", "value"),
}
NAMES = {
    name
    for family in (
        *(TASKS, KD_LOSSES, MATCH_LOSSES, TEMPERATURES, LAYER_RULES, SHAPES, RECURRENT_SHAPES, INITIALISATIONS),
        *(METHODS, SEARCHERS, SCHEDULERS, TRACKERS, KINDS),
    )
    for name in family
} - _WORDS

#: Where names stand that mean something else, or are what a file is about.
_EXCEPT = {
    "config/task_kinds.py": set(TASKS),  # the keys of each kind: a class for each row
    "config/augment.py": {"masked_lm"},  # a way to augment
    "pipeline/augment.py": {"masked_lm"},
    "diagnosis/machine.py": {"optuna"},  # a package
}
#: Tasks say how their own outputs are measured; TextBrewer's names are those of another package.
_FOLDERS = ("catalog", "tasks", "textbrewer")


def _texts(node: ast.AST | None) -> Iterator[ast.Constant]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for each in node.elts:
            yield from _texts(each)


def names_decided_by(source: str, names: set[str]) -> Iterator[tuple[int, str]]:
    """Lines where one of `names` is compared, looked up, a key of a table, a choice of a Literal, or one of a list."""
    tree = ast.parse(source)
    exports = [node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.dump(node)]
    for node in ast.walk(tree):
        found: list[ast.AST | None] = []
        if isinstance(node, ast.List | ast.Tuple | ast.Set) and node not in exports:
            listed = [text for text in _texts(node) if text.value in names]
            found = [*listed] if len(listed) > 2 else []
        elif isinstance(node, ast.Compare):
            found = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            found = [*node.keys]
        elif isinstance(node, ast.Subscript):
            found = [node.slice]
        elif isinstance(node, ast.MatchValue):
            found = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOOKS | {"get"}:
            found = [*node.args]
        for each in found:
            yield from ((text.lineno, str(text.value)) for text in _texts(each) if text.value in names)


def test_nothing_outside_the_catalogue_names_a_member() -> None:
    """What a member is like is said by its row: a choice, a check or a dispatch asks the row, never for the name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] not in _FOLDERS:
            names = NAMES - _EXCEPT.get(place.as_posix(), set())
            decided = names_decided_by(path.read_text(encoding="utf-8"), names)
            found += [f"{place}:{line} {name}" for line, name in decided]
    assert not found


def test_no_kind_of_task_is_spelled_out_outside_catalogue_and_tasks() -> None:
    """Not even as a default or an argument: `task_spec` says what a kind is like."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] in ("catalog", "tasks"):
            continue
        kinds = set(TASKS) - _EXCEPT.get(place.as_posix(), set())
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found += [f"{place}:{text.lineno} {text.value}" for text in texts if text.value in kinds]
    assert not found


def test_such_names_are_seen() -> None:
    seen = (
        'if config.kind == "asha": pass',
        'if kind in ("qa", "tagging"): pass',
        'table = {"mmd": 1}',
        'row = TABLE["optuna"]',
        'kind: Literal["x", "T3"]',
        'config.get("wandb")',
        'USUAL = ["ce", "kl", "js"]',
    )
    assert all(list(names_decided_by(each, NAMES)) for each in seen)
    assert not list(names_decided_by('raise ConfigError("asha")\nkind = "asha"\nif kind == "none": pass', NAMES))
    assert len(NAMES) > 50


def test_summaries_are_read_and_written_in_records_alone() -> None:
    """Others ask `RunSummary` for fields; the file has one reader and one writer."""
    naming = [
        path.relative_to(PACKAGE).parts[0]
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "summary.json"
    ]
    assert set(naming) == {"records"}


#: Rooms that take what `pipeline.resolve` found; the experiment itself is for those that resolve it, name runs or
#: read a file.
RESOLVED = ("pipeline", "planning", "runs", "verbs")
TAKE_EXPERIMENTS = ("pipeline/resolve.py", "pipeline/export_source.py", "verbs", "training/run_folder.py")
#: Rooms above: an experiment is what they are given, or what they make.
ABOVE = ("cli", "config", "demo", "diagnosis", "jobs", "sweeps", "verbs")


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def none_keyed(source: str) -> bool:
    """Whether a mapping has no name for an only task or teacher."""
    return re.search(r"\b(?:dict|Mapping)\[(?:tuple\[)?str \| None", source) is not None


def test_a_single_task_or_teacher_has_a_name() -> None:
    """`default`, in a list of one: no mapping has None for it (store: parts of a row, which have no names)."""
    found = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if "store" not in path.parts and none_keyed(path.read_text(encoding="utf-8"))
    ]
    assert not found
    assert none_keyed("x: dict[str | None, int] = {}")
    assert none_keyed("x: Mapping[tuple[str | None, str], int]")


def test_only_resolve_asks_how_many_tasks_there_are() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "config" and path != PACKAGE / "pipeline" / "resolve.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "isinstance"
        and "MultiTaskConfig" in ast.dump(node)
    ]
    assert not found


def takes_experiment(function: ast.FunctionDef) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = [node.id for each in arguments if each.annotation for node in ast.walk(each.annotation)
             if isinstance(node, ast.Name)]  # fmt: skip
    return "Experiment" in names


def test_what_is_resolved_is_passed_on() -> None:
    """Below the verbs a function takes a task, a teacher or a section, never an experiment to look them up in."""
    seen = [
        (str(path.relative_to(PACKAGE)), function.name)
        for path in sorted(PACKAGE.rglob("*.py"))
        for function in functions_of(path)
        if path.relative_to(PACKAGE).parts[0] not in ABOVE and takes_experiment(function)
    ]
    assert ("pipeline/resolve.py", "resolve") in seen
    assert [name for name in seen if not name[0].startswith(TAKE_EXPERIMENTS)] == []


def test_files_and_functions_are_short() -> None:
    """Rooms of at most 16 files of 350 lines; functions of 60 lines, with at most 7 parameters that go by place."""
    found = []
    for room in RESOLVED:
        paths = sorted((PACKAGE / room).rglob("*.py"))
        if len(paths) > 17:  # with __init__.py
            found.append(f"{room}: {len(paths)} files")
        for path in paths:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > 350:
                found.append(f"{path.relative_to(PACKAGE)}: {lines} lines")
            for function in functions_of(path):
                where = f"{path.relative_to(PACKAGE)}:{function.name}"
                places = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
                length = (function.end_lineno or 0) - function.lineno + 1
                if len(set(places) - {"self", "cls"}) > 7:
                    found.append(f"{where}: {len(places)} parameters")
                if length > 60:
                    found.append(f"{where}: {length} lines")
    assert not found
