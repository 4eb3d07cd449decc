"""`bitsweep init` writes a first configuration, `run` measures, `report` rebuilds a report, `ui` shows runs; `compare`,
`gate` and `accept` judge one sweep by another; `export` makes a bundle, `verify` tries one; `clean` frees room."""

import argparse
import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.errors import BitsweepError, UsageError
from bitsweep.runtime.interruption import ended_from_outside
from bitsweep.text import counted, plain

if TYPE_CHECKING:
    from bitsweep.comparison.judging import Limits

#: Objects after which Python looks for garbage. Packages that are imported make some hundred times as many as its own
#: threshold, and next to no garbage: a sixth of the time of a command that has nothing to do was spent in looking.
_MADE_UNTIL_COLLECTED = 100_000
#: What a command does; returns its exit code, or nothing for 0.
Do = Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; ends with exit code 1 or 2 and one line on standard error if it cannot be done."""
    given = sys.argv[1:] if arguments is None else arguments
    if list(given[:1]) == ["run"]:  # Hydra reads the rest
        run(given[1:])
        return
    gc.set_threshold(_MADE_UNTIL_COLLECTED)
    with ended_from_outside():
        parser, names = _commands()
        if list(given[:1]) == ["-sc"]:
            complete(given, names)
            return
        # Limits may stand anywhere, which positional arguments may not.
        limits = [word for word in given if given[0] in ("gate", "report") and re.match(r"\+*require[.=]", word)]
        options = parser.parse_args([word for word in given if word not in limits], argparse.Namespace(limits=limits))
        try:
            code = options.do(options)
        except BitsweepError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        if code:
            sys.exit(code)


def run(arguments: Sequence[str] | None = None, **places: Path) -> None:
    """`bitsweep run`, from whose first moment on Ctrl-C ends it without a traceback: its imports take a second.

    Args:
        places: ``conf``, the folder of YAMLs, if another than that of the package.
    """
    gc.set_threshold(_MADE_UNTIL_COLLECTED)
    with ended_from_outside():
        from bitsweep.hydra_app import main

        main(arguments, **places)


def _commands() -> tuple[argparse.ArgumentParser, list[str]]:
    """What reads the options of a command, with what does it as ``do``; and the names of all commands."""
    from bitsweep.runtime.environment import version_of

    parser = argparse.ArgumentParser(prog="bitsweep", description="Measure compressed classifiers, and look at it.")
    parser.add_argument("--version", action="version", version=f"bitsweep {version_of('bitsweep')}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, do: Do, text: str, more: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, epilog=more)
        added.set_defaults(do=do)
        return added

    start = command("init", start_here, "write a network, a data set and a grid of your own, to be edited")
    start.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=Path(), help="default: this one")
    commands.add_parser("run", help="measure a cell, or a grid with -m; `bitsweep run --help` lists all choices")
    report = command("report", rebuild_report, "rebuild the report of a sweep from MLflow")
    report.add_argument("sweep_id", metavar="SWEEP_ID", help="its folder under multirun/, latest, or previous")
    report.add_argument(
        "require", metavar="require.LIMIT=VALUE", nargs="*", default=[], help="judge its cells by other limits"
    )
    report.add_argument("--folder", type=Path, help="where to write it (default: multirun/SWEEP_ID)")
    compare = command("compare", compare_sweeps, "set two sweeps side by side: better, worse, undecided, new, gone")
    compare.add_argument("old", metavar="OLD", help="a sweep's folder or id, latest, previous, or a file of accept")
    compare.add_argument("new", metavar="NEW", help="the same of another")
    compare.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there, too")
    gate = command(
        "gate",
        gate_sweep,
        "end with exit code 1 if a sweep became worse than another",
        "require.LIMIT=VALUE, as in bitsweep run: every cell must keep this limit; "
        "of the limits that NEW or OLD was run with, none may be missed that was not missed before",
    )
    gate.add_argument("new", metavar="NEW", help="a sweep's folder or id, latest, or a file of accept")
    gate.add_argument("--against", metavar="OLD", required=True, help="another sweep, or a file of accept")
    gate.add_argument("--junit", metavar="FILE", type=Path, help="write the result of every cell as JUnit XML")
    gate.add_argument("--strict", action="store_true", help="what cannot be decided is a regression, too")
    for judging in (compare, gate):
        for option, default, text in _LIMITS:
            judging.add_argument(
                option, metavar="X", type=_amount, default=default, help=f"{text} (default: {default})"
            )
    accept = command("accept", accept_sweep, "write a small file that later sweeps are compared with")
    accept.add_argument("sweep_id", metavar="SWEEP", help="its folder or id, or latest")
    accept.add_argument("--out", metavar="FILE", type=Path, default=Path("baseline.json"))
    tidy = command("clean", clean_store, "list what takes room in the store, and free what no finished cell rests on")
    tidy.add_argument(
        "--store", metavar="FOLDER", type=Path, default=Path("multirun/store"), help="default: %(default)s"
    )
    tidy.add_argument("--kind", metavar="KIND", action="append", default=[], help="only such items, as compressed")
    tidy.add_argument("--delete", action="store_true", help="free it; otherwise it is only listed")
    tidy.add_argument("--force", action="store_true", help="also what finished cells rest on")
    ui = command("ui", show_ui, "start the MLflow UI, with a link to the comparison of all cells")
    ui.add_argument("--port", type=_port, default=5000)
    export = command("export", export_bundle, "write what a cell measured as a folder that runs by itself")
    export.add_argument("run_id", metavar="RUN_ID", help="MLflow run of a finished cell, as in the report's cells.csv")
    export.add_argument("folder", metavar="DIR", type=Path, nargs="?", help="new folder")
    check = command("verify", verify_bundle, "run such a folder in a new environment, and compare")
    check.add_argument("folder", metavar="DIR", type=Path)
    check.add_argument("--here", action="store_true", help="in this environment: install nothing")
    ask = command(
        "probe", probe_target, "describe a machine that is reached by ssh, so that target=NAME measures there"
    )
    ask.add_argument("host", metavar="HOST", help="as ssh takes it, e.g. user@board")
    ask.add_argument("--name", default="edge", help="of the target (default: edge)")
    ask.add_argument("--python", default="python3", help="interpreter there, with numpy, psutil and the engine")
    ask.add_argument("--folder", default=".cache/bitsweep", help="where files are kept there, from its home folder on")
    ask.add_argument("--option", metavar="WORD", action="append", default=[], help="of ssh; --option=-p --option=2222")
    ask.add_argument(
        "--install", metavar="ENGINE", nargs="*", help="make an environment there with what these engines need"
    )
    ask.add_argument("--config-dir", metavar="DIR", type=Path, default=Path("conf"), help="gets target/NAME.yaml")
    return parser, list(commands.choices)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1 to 65535")
    return int(text)


#: Options of `compare` and `gate`: what counts as worse, with the defaults of `bitsweep.comparison.judging.Limits`.
_LIMITS = (
    ("--drop-pp", 0.0, "points of top-1 that may be lost"),
    ("--slower-pct", 1.0, "per cent by which a latency may grow"),
    ("--larger-pct", 1.0, "per cent by which a file may grow"),
)


def _amount(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < 1000:
            return value
    raise argparse.ArgumentTypeError(f"{text}: give a number from 0 on")


def _limits(options: argparse.Namespace) -> "Limits":
    from bitsweep.comparison.judging import Limits

    return Limits(drop_pp=options.drop_pp, slower_pct=options.slower_pct, larger_pct=options.larger_pct)


def probe_target(options: argparse.Namespace) -> None:
    """Write the YAML of a machine that is reached by ssh, and say what engines it has."""
    from bitsweep.probing import Asked, probe

    asked = Asked(
        host=options.host, name=options.name, python=options.python, folder=options.folder, options=options.option
    )
    for line in probe(asked, into=options.config_dir, install=options.install):
        print(line)


def start_here(options: argparse.Namespace) -> None:
    """Write a first configuration, and say what to do with it."""
    from bitsweep.config.start import write_start

    for path in write_start(options.folder):
        print(path)
    print("put your images into images/CLASS/*, then: bitsweep run --config-dir conf sweep=mine")


def complete(given: Sequence[str], names: Sequence[str]) -> None:
    """Print what may follow in a shell, which Hydra knows of `run`; `bitsweep run -sc install=bash` sets this up.

    Args:
        names: of all commands.
    """
    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if words[:1] != ["run"] or len(words) < 2:
        print("\n".join(names))
        return
    from bitsweep.hydra_app import main as run

    os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    run(given)


def rebuild_report(options: argparse.Namespace) -> int:
    """Print the table of a sweep and write its report files again, from MLflow alone.

    Returns:
        Exit code: 0; 3 if something is required, and no cell is known to keep it.
    """
    from bitsweep.hydra_app import requirements
    from bitsweep.report import unmet
    from bitsweep.runtime import child
    from bitsweep.sweep import UNMET, publish
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import find_sweep, read_sweep, requirements_of

    if options.folder:
        there = next(each for each in (options.folder.absolute(), *options.folder.absolute().parents) if each.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UsageError(f"--folder {options.folder}: {there} is no folder that can be written; name another")
    connection = Connection(read_only=True)
    sweep = find_sweep(connection, options.sweep_id)
    folder = options.folder or Path("multirun") / sweep.data.tags["sweep"]
    wanted = requirements([*options.require, *options.limits], recorded=requirements_of(sweep))
    report = read_sweep(connection, sweep, folder=folder, require=wanted)
    lost = sum(row.status == "interrupted" for row in report.rows)
    if lost and sweep.data.tags["status"] != "running" and (folder / "report.html").exists():
        raise UsageError(
            f"{folder}: the report there is complete, while MLflow and the store lack {counted(lost, 'cell')}; "
            "it is kept: name another folder with --folder, or run the sweep again"
        )
    child.warm_up(child.FOR_PICTURES)
    publish(report, folder)
    return UNMET if unmet(report) else 0


def compare_sweeps(options: argparse.Namespace) -> None:
    """Print two sweeps side by side."""
    from bitsweep.comparison.content import compare
    from bitsweep.comparison.gate import write
    from bitsweep.comparison.reading import read_evidence
    from bitsweep.comparison.showing import markdown, terminal
    from bitsweep.report.terminal import console

    comparison = compare(read_evidence(options.old), read_evidence(options.new), _limits(options))
    console().print(terminal(comparison))
    if options.markdown:
        write(markdown(comparison), options.markdown)


def gate_sweep(options: argparse.Namespace) -> int:
    """Print a line a regression of a sweep against another; returns the exit code."""
    from bitsweep.comparison.content import compare
    from bitsweep.comparison.gate import write_junit, write_summary
    from bitsweep.comparison.reading import read_evidence
    from bitsweep.config.requirement import NOTHING
    from bitsweep.hydra_app import requirements
    from bitsweep.report.verdict import stricter

    demanded = requirements(options.limits, recorded=NOTHING).limits
    old, new = read_evidence(options.against), read_evidence(options.new)
    require = requirements(options.limits, recorded=stricter(old.require, new.require))
    comparison = compare(old, new, _limits(options), require=require, demanded=frozenset(demanded))
    if options.junit:
        write_junit(comparison, options.junit, strict=options.strict)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        write_summary(comparison, Path(summary))
    doubts = comparison.doubts
    for name, line in comparison.regressions:
        print(plain(f"regression: {name}: {line}"))
    for name, line in doubts:
        print(plain(f"{'regression' if options.strict else 'undecided'}: {name}: {line}"))
    print(plain(comparison.summary))
    return int(bool(comparison.regressions or (options.strict and doubts)))


def accept_sweep(options: argparse.Namespace) -> None:
    """Write the file that later sweeps are compared with."""
    from bitsweep.comparison.evidence import write_accepted
    from bitsweep.comparison.reading import read_evidence

    sweep = read_evidence(options.sweep_id)
    write_accepted(sweep, options.out)
    cells = counted(len(sweep.cells), "cell")
    print(f"{options.out}: {cells} of {sweep.sweep_id}; bitsweep gate NEW --against {options.out}")


def export_bundle(options: argparse.Namespace) -> None:
    """Write the artifact of a cell, from MLflow alone, with all that it takes to run it."""
    from bitsweep.deploy import bundle
    from bitsweep.tracking.bundles import download_bundle
    from bitsweep.tracking.connection import Connection

    folder = options.folder
    if folder is None:
        raise UsageError(
            f"export {options.run_id}: needs RUN_ID and DIR: a run, as in the report's cells.csv, and a new folder"
        )
    download_bundle(Connection(read_only=True), options.run_id, folder)
    bundle.complete(folder)
    print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def verify_bundle(options: argparse.Namespace) -> None:
    """Say whether a bundle still does what was recorded."""
    from bitsweep.deploy import bundle

    print(bundle.verify(options.folder, here=options.here))


def clean_store(options: argparse.Namespace) -> None:
    """List, or free, what the store does not need."""
    from bitsweep.cleaning import clean

    clean(options.store, kinds=options.kind, delete=options.delete, force=options.force)


def show_ui(options: argparse.Namespace) -> None:
    """Start the MLflow UI, and wait for its end."""
    from bitsweep.ui import serve_ui

    serve_ui(options.port)
