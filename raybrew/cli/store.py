"""raybrew store: ls, show, verify, prune."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from raybrew.cli.options import AsJson
from raybrew.cli.terminal import make_reporter, print_json, results, write_line
from raybrew.config.loading import load_experiment
from raybrew.errors import ConfigError

__all__ = ["store_app"]

store_app = typer.Typer(
    name="store",
    help="Look at teacher stores, check them, and remove what is needed no more.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="[PATH]",
        help="A store, a folder or URL of stores, or an experiment file for its stores.",
        show_default="runs/store",
    ),
]

_DEFAULT = "runs/store"


@store_app.command("ls")
def ls(target: Target = _DEFAULT, as_json: AsJson = False) -> None:
    """List stores: teacher, rows, signals, size, when last used."""
    from raybrew.store.listing import describe
    from raybrew.verbs.store import list_stores

    entries = list_stores(target)
    if as_json:
        listed = []
        for entry in entries:
            facts: dict[str, Any] = {
                "path": entry.location,
                "problem": entry.problem,
                "bytes_on_disk": entry.bytes,
                "used": entry.used,
            }
            if entry.store is not None:
                told = describe(entry.store)
                facts |= {key: told[key] for key in ("fingerprint", "teacher", "rows", "tokens", "signals")}
            listed.append(facts)
        print_json(listed)
        return
    if not entries:
        write_line(f"no stores in {target}")
        return
    from rich.table import Table

    table = Table("fingerprint", "teacher", "rows", "signals", "MiB", "last used")
    for entry in entries:
        name, size = Path(entry.location).name, f"{entry.bytes / 2**20:.1f}"
        used = (entry.used or "not known")[:16].replace("T", " ")
        if entry.store is None:
            table.add_row(name, "", "", (entry.problem or "").removeprefix(entry.location).lstrip("/: "), size, used)
            continue
        told = describe(entry.store)
        table.add_row(name, told["teacher"], str(told["rows"]), _signals(told), size, used)
    results().print(table, markup=False)


@store_app.command("show")
def show(target: Target = _DEFAULT, as_json: AsJson = False) -> int:
    """Show what one store (or each of several) holds, from what it was computed, and rows that were set aside."""
    from raybrew.store.listing import describe
    from raybrew.verbs.store import list_stores

    entries = list_stores(target)
    facts = [
        {"path": entry.location, "problem": entry.problem} if entry.store is None else describe(entry.store)
        for entry in entries
    ]
    if as_json:
        print_json(facts)
    else:
        for told in facts:
            _print_facts(told)
        if not facts:
            write_line(f"no stores in {target}")
    return 1 if any(entry.store is None for entry in entries) else 0


@store_app.command("verify")
def verify(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]... [KEY=VALUE]...",
            help="Stores, folders of stores, experiment files; overrides of the experiment with --live.",
            show_default="runs/store",
        ),
    ] = None,
    live: Annotated[
        int | None,
        typer.Option(
            "--live", metavar="ROWS", help="Compute so many rows of an experiment's store again.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Read whole stores and compare all bytes with the hashes of their manifests. Exit code 1 if one differs.

    With `--live 64 EXPERIMENT` also compute 64 rows again with the teacher: the largest difference of each signal,
    beside what its element type explains and beside that of the same teacher run twice.
    """
    from raybrew.verbs.store import verify_stores

    given = arguments or []
    overrides = [argument for argument in given if "=" in argument and "://" not in argument]
    targets = [argument for argument in given if argument not in overrides] or [_DEFAULT]
    if live is not None and not all(target.endswith((".yaml", ".yml")) for target in targets):
        words = f"needs the experiment file, which tells the teacher; given {', '.join(targets)}"
        raise ConfigError.of("--live", words, "required")
    if live is None and overrides:
        raise ConfigError.of(overrides[0], "overrides are for --live", "unused")
    checks = [check for target in targets for check in verify_stores(target)]
    found: list[dict[str, Any]] = [{"path": check.location, "problems": list(check.problems)} for check in checks]
    if not as_json:
        for check in checks:
            write_line(f"{check.location}: {'whole' if not check.problems else f'{len(check.problems)} problems'}")
            for problem in check.problems:
                write_line(f"  {problem}")
    good = all(not check.problems for check in checks)
    for target in targets if live is not None and good else ():
        good = _verify_live(Path(target), overrides, live or 0, as_json, found) and good
    if as_json:
        print_json(found)
    return 0 if good else 1


def _verify_live(path: Path, overrides: list[str], rows: int, as_json: bool, found: list[dict[str, Any]]) -> bool:
    from raybrew.verbs.store import verify_live

    experiment = load_experiment(path, overrides)
    make_reporter().say(f"{path}: computing {rows} rows again, twice")
    good = True
    for name, checks in verify_live(experiment, rows).items():
        told = f"{path}: {name}" if name else str(path)
        found.append({"experiment": told, "live": [dataclasses.asdict(check) for check in checks]})
        same = all(check.agrees for check in checks)
        good = good and same
        if as_json:
            continue
        from rich.table import Table

        table = Table("signal", "type", "rows", "store - teacher", "of it rounding", "teacher twice", "verdict")
        for check in checks:
            numbers = (f"{value:.2e}" for value in (check.stored, check.rounding, check.itself))
            verdict = "agrees" if check.agrees else "DIFFERS"
            table.add_row(check.signal, check.element_type, str(check.rows), *numbers, verdict)
        results().print(table, markup=False)
        write_line(f"{told}: the store {'is' if same else 'IS NOT'} what the teacher gives")
    return good


@store_app.command("prune")
def prune(
    target: Target = _DEFAULT,
    signal: Annotated[
        list[str] | None, typer.Option("--signal", help="Remove this signal, such as hidden.08.", show_default=False)
    ] = None,
    element_type: Annotated[
        list[str] | None,
        typer.Option("--element-type", help="Remove signals of this type, such as float32.", show_default=False),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option("--store", help="Remove this store: its fingerprint, or how it begins.", show_default=False),
    ] = None,
    unused_days: Annotated[
        float | None,
        typer.Option("--unused-days", help="Remove stores that nothing has used for so long.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes/--dry-run", help="Remove, or only say what would be.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove signals, element types or whole stores, and what dead captures left behind. Says what, unless --yes.

    Never touches a store that is being captured.
    """
    from raybrew.verbs.store import PruneRules, plan_prune, prune_stores, root_of

    rules = PruneRules(tuple(signal or ()), tuple(element_type or ()), tuple(store or ()), unused_days)
    root, cache = root_of(target)
    removals = plan_prune(root, rules, cache)
    removed = prune_stores(removals) if yes else 0
    if as_json:
        listed = [
            {"path": each.storage.location, "what": each.what, "bytes": each.bytes, "held": each.held}
            for each in removals
        ]
        print_json({"removals": listed, "removed_bytes": removed, "dry_run": not yes})
        return
    for each in removals:
        held = f" (stays: {each.held})" if each.held else ""
        write_line(f"{each.storage.location}: {each.what}, {each.bytes / 2**20:.1f} MiB{held}")
    if not removals:
        write_line(f"nothing to remove in {root}")
    elif yes:
        write_line(f"removed {removed / 2**20:.1f} MiB")
    else:
        total = sum(each.bytes for each in removals if not each.held)
        write_line(f"{total / 2**20:.1f} MiB would be removed; --yes does it")


def _signals(facts: dict[str, Any]) -> str:
    """Signals by element type, those of a kind together: float16: hidden.04 hidden.08."""
    by_type: dict[str, list[str]] = {}
    for entry in facts["signals"].values():
        short = "" if entry["rows"] == facts["rows"] else f" ({entry['rows']} rows)"
        by_type.setdefault(_type(entry), []).append(entry["signal"] + short)
    return "; ".join(f"{name}: {' '.join(signals)}" for name, signals in by_type.items())


def _type(entry: dict[str, Any]) -> str:
    return f"{entry['element_type']} in {entry['form']}" if "form" in entry else str(entry["element_type"])


def _print_facts(facts: dict[str, Any]) -> None:
    if facts.get("problem") is not None:
        write_line(facts["problem"])
        return
    from rich.table import Table

    write_line(f"store {facts['path']}")
    write_line(f"teacher {facts['teacher']}")
    write_line(f"captured by raybrew {facts['raybrew']}, last used {facts['used'] or 'at a time not known'}")
    for name, value in facts["parts"].items():
        write_line(f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    write_line(f"{facts['rows']} rows, {facts['tokens']} tokens, {facts['shards']} shards")
    table = Table("what", "type", "numbers", "rows", "bytes")
    table.add_row("examples", "", "", str(facts["rows"]), str(facts["examples_bytes"]))
    table.add_row("index", "", "", str(facts["rows"]), str(facts["index_bytes"]))
    for entry in facts["signals"].values():
        numbers = (str(entry[key]) for key in ("dim", "rows", "bytes"))
        table.add_row(entry["signal"], _type(entry), *numbers)
    results().print(table, markup=False)
    aside = {row: reason for rows in facts["set_aside"].values() for row, reason in rows.items()}
    if aside:
        write_line(f"{len(aside)} rows were set aside, which the teacher could not compute:")
        for row, reason in aside.items():
            write_line(f"  {row}: {reason}")
