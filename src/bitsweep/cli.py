"""`bitsweep init` writes a first configuration, `run` measures, `report` rebuilds a report, `ui` shows runs; `compare`,
`gate` and `accept` judge one sweep by another; `export` makes a bundle, `verify` tries one; `clean` frees room."""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.errors import BitsweepError, TrackingError, UsageError
from bitsweep.text import plain

if TYPE_CHECKING:
    from bitsweep.comparison.judging import Limits


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; ends with exit code 1 or 2 and one line on standard error if it cannot be done."""
    given = sys.argv[1:] if arguments is None else arguments
    if list(given[:1]) == ["run"]:  # Hydra reads the rest
        from bitsweep.hydra_app import main as run

        run(given[1:])
        return
    if list(given[:1]) == ["-sc"]:
        complete(given)
        return
    parser = argparse.ArgumentParser(prog="bitsweep", description="Measure compressed classifiers, and look at it.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("init", help="write a network, a data set and a grid of your own, to be edited")
    start.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=Path(), help="default: this one")
    commands.add_parser("run", help="measure a cell, or a grid with -m; `bitsweep run --help` lists all choices")
    report = commands.add_parser("report", help="rebuild the report of a sweep from MLflow")
    report.add_argument("sweep_id", metavar="SWEEP_ID", help="its folder under multirun/, latest, or previous")
    report.add_argument("require", metavar="require.LIMIT=VALUE", nargs="*", help="judge its cells by other limits")
    report.add_argument("--folder", type=Path, help="where to write it (default: multirun/SWEEP_ID)")
    compare = commands.add_parser("compare", help="set two sweeps side by side: better, worse, undecided, new, gone")
    compare.add_argument("old", metavar="OLD", help="a sweep's folder or id, latest, previous, or a file of accept")
    compare.add_argument("new", metavar="NEW", help="the same of another")
    compare.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there, too")
    gate = commands.add_parser(
        "gate",
        help="end with exit code 1 if a sweep became worse than another",
        epilog="require.LIMIT=VALUE, as in bitsweep run: a cell that begins to miss a limit is a regression, too; "
        "those that NEW was run with hold anyway",
    )
    gate.add_argument("new", metavar="NEW", help="a sweep's folder or id, or latest")
    gate.add_argument("--against", metavar="OLD", required=True, help="another sweep, or a file of accept")
    gate.add_argument("--junit", metavar="FILE", type=Path, help="write the result of every cell as JUnit XML")
    gate.add_argument("--strict", action="store_true", help="what cannot be decided is a regression, too")
    for command in (compare, gate):
        for option, default, text in _LIMITS:
            command.add_argument(
                option, metavar="X", type=_amount, default=default, help=f"{text} (default: {default})"
            )
    accept = commands.add_parser("accept", help="write a small file that later sweeps are compared with")
    accept.add_argument("sweep_id", metavar="SWEEP", help="its folder or id, or latest")
    accept.add_argument("--out", metavar="FILE", type=Path, default=Path("baseline.json"))
    tidy = commands.add_parser(
        "clean", help="list what takes room in the store, and free what no finished cell rests on"
    )
    tidy.add_argument("--store", metavar="FOLDER", type=Path, default=Path("multirun/store"))
    tidy.add_argument("--kind", metavar="KIND", action="append", default=[], help="only such items, as compressed")
    tidy.add_argument("--delete", action="store_true", help="free it; otherwise it is only listed")
    tidy.add_argument("--force", action="store_true", help="also what finished cells rest on")
    ui = commands.add_parser("ui", help="start the MLflow UI, with a link to the comparison of all cells")
    ui.add_argument("--port", type=_port, default=5000)
    export = commands.add_parser("export", help="write what a cell measured as a folder that runs by itself")
    export.add_argument("run_id", metavar="RUN_ID", help="MLflow run of a finished cell, as in the report's cells.csv")
    export.add_argument("folder", metavar="DIR", type=Path, help="new folder")
    check = commands.add_parser("verify", help="run such a folder in a new environment, and compare")
    check.add_argument("folder", metavar="DIR", type=Path)
    check.add_argument("--here", action="store_true", help="in this environment: install nothing")
    # They may stand anywhere, which positional arguments may not.
    require = [word for word in given if given[0] == "gate" and re.match(r"\+*require[.=]", word)]
    options = parser.parse_args([word for word in given if word not in require])
    try:
        if options.command == "init":
            start_here(options.folder)
        elif options.command == "report":
            if code := rebuild_report(options.sweep_id, options.folder, require=options.require):
                sys.exit(code)
        elif options.command == "compare":
            compare_sweeps(options.old, options.new, _limits(options), file=options.markdown)
        elif options.command == "gate":
            sys.exit(gate_sweep(options, require=require))
        elif options.command == "accept":
            accept_sweep(options.sweep_id, options.out)
        elif options.command == "clean":
            from bitsweep.cleaning import clean

            clean(options.store, kinds=options.kind, delete=options.delete, force=options.force)
        elif options.command == "export":
            export_bundle(options.run_id, options.folder)
        elif options.command == "verify":
            verify_bundle(options.folder, here=options.here)
        else:
            serve_ui(options.port)
    except BitsweepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1 to 65535")
    return int(text)


#: Options of `compare` and `gate`: what counts as worse, with the defaults of `bitsweep.comparison.judging.Limits`.
_LIMITS = (
    ("--drop-pp", 0.0, "points of top-1 that may be lost"),
    ("--slower-pct", 3.5, "per cent by which a latency may grow"),
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


def start_here(folder: Path) -> None:
    """Write a first configuration, and say what to do with it."""
    from bitsweep.config.start import write_start

    for path in write_start(folder):
        print(path)
    print("put your images into images/CLASS/*, then: bitsweep run --config-dir conf sweep=mine")


def complete(given: Sequence[str]) -> None:
    """Print what may follow in a shell, which Hydra knows of `run`; `bitsweep run -sc install=bash` sets this up."""
    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if words[:1] != ["run"] or len(words) < 2:
        print("\n".join(("init", "run", "report", "compare", "gate", "accept", "clean", "ui", "export", "verify")))
        return
    from bitsweep.hydra_app import main as run

    os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    run(given)


def rebuild_report(sweep_id: str, folder: Path | None = None, *, require: Sequence[str] = ()) -> int:
    """Print the table of a sweep and write its report files again, from MLflow alone.

    Args:
        folder: where they are written; None for the sweep's own.
        require: limits to judge it by besides those that it was run with, or in their place.

    Returns:
        Exit code: 0; 3 if something is required, and of what was measured nothing is known to keep it.
    """
    from bitsweep.hydra_app import requirements
    from bitsweep.report import unmet
    from bitsweep.runtime import child
    from bitsweep.sweep import UNMET, publish
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import find_sweep, read_sweep, requirements_of

    connection = Connection(read_only=True)
    sweep = find_sweep(connection, sweep_id)
    folder = folder or Path("multirun") / sweep.data.tags["sweep"]
    wanted = requirements(require, recorded=requirements_of(sweep))
    report = read_sweep(connection, sweep, folder=folder, require=wanted)
    lost = sum(row.status == "interrupted" for row in report.rows)
    if lost and sweep.data.tags["status"] != "running" and (folder / "report.html").exists():
        raise UsageError(
            f"{folder}: the report there is complete, while {lost} of its cells are gone from MLflow and the store; "
            "it is kept: name another folder with --folder, or run the sweep again"
        )
    child.warm_up(child.FOR_PICTURES)
    publish(report, folder)
    return UNMET if unmet(report) else 0


def compare_sweeps(old: str, new: str, limits: "Limits", *, file: Path | None) -> None:
    """Print two sweeps side by side."""
    from bitsweep.comparison.content import compare
    from bitsweep.comparison.gate import write
    from bitsweep.comparison.reading import read_evidence
    from bitsweep.comparison.showing import markdown, terminal
    from bitsweep.report.terminal import console

    comparison = compare(read_evidence(old), read_evidence(new), limits)
    console().print(terminal(comparison))
    if file:
        write(markdown(comparison), file)


def gate_sweep(options: argparse.Namespace, *, require: Sequence[str]) -> int:
    """Print a line a regression of a sweep against another; returns the exit code.

    Args:
        require: limits that no cell may begin to miss, besides those that the sweep was run with.
    """
    from bitsweep.comparison.content import compare
    from bitsweep.comparison.gate import write_junit, write_summary
    from bitsweep.comparison.reading import read_evidence
    from bitsweep.hydra_app import requirements
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import find_sweep, requirements_of

    connection = Connection(read_only=True)
    wanted = requirements(require, recorded=requirements_of(find_sweep(connection, options.new)))
    old, new = read_evidence(options.against), read_evidence(options.new, connection)
    comparison = compare(old, new, _limits(options), require=wanted)
    if options.junit:
        write_junit(comparison, options.junit, strict=options.strict)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        write_summary(comparison, Path(summary))
    doubts = [(cell.name, line) for cell in comparison.cells for line in cell.doubts]
    for name, line in comparison.regressions:
        print(plain(f"regression: {name}: {line}"))
    for name, line in doubts:
        print(plain(f"{'regression' if options.strict else 'undecided'}: {name}: {line}"))
    print(plain(comparison.summary))
    return int(bool(comparison.regressions or (options.strict and doubts)))


def accept_sweep(sweep_id: str, file: Path) -> None:
    """Write the file that later sweeps are compared with."""
    from bitsweep.comparison.evidence import write_accepted
    from bitsweep.comparison.reading import read_evidence

    sweep = read_evidence(sweep_id)
    write_accepted(sweep, file)
    print(f"{file}: {len(sweep.cells)} cells of {sweep.sweep_id}; bitsweep gate NEW --against {file}")


def export_bundle(run_id: str, folder: Path) -> None:
    """Write the artifact of a cell, from MLflow alone, with all that it takes to run it."""
    from bitsweep.deploy import bundle
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import download_bundle

    download_bundle(Connection(read_only=True), run_id, folder)
    bundle.complete(folder)
    print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def verify_bundle(folder: Path, *, here: bool) -> None:
    """Say whether a bundle still does what was recorded."""
    from bitsweep.deploy import bundle

    print(bundle.verify(folder, here=here))


def serve_ui(port: int) -> None:
    """Start the MLflow UI with one worker and print the link to the comparison page; ends with the server.

    However this ends, by Ctrl-C, a signal or an error, no process of the server is left.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    from bitsweep.tracking.address import find_address
    from bitsweep.tracking.connection import Connection

    served = find_address().uri.startswith("http")
    with contextlib.closing(socket.socket()) as probe:
        if not served and probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(f"--port {port}: something listens there already; choose another port")
    tracked = Connection(read_only=True)
    if served:
        print(f"compare the cells: {tracked.uri.rstrip('/')}/{tracked.comparison_path}", flush=True)
        return
    # With its defaults the server is fifteen processes and 2.5 GB. The address may hold a password: no argument.
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": tracked.address.uri}
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    # In a session of its own, a Ctrl-C is this process's alone.
    server = subprocess.Popen(command, env=os.environ | settings, start_new_session=True)
    try:
        while server.poll() is None:
            with contextlib.closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        if server.poll() is None:
            print(f"compare the cells: http://127.0.0.1:{port}/{tracked.comparison_path}", flush=True)
        if server.wait():
            raise TrackingError(f"mlflow ui ended with exit code {server.returncode}; its output is above")
    finally:
        for ends in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, ends)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
