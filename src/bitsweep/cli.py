"""`bitsweep init` writes a first configuration, `run` measures, `report` rebuilds a report, `ui` shows runs, `export`
makes a bundle, `verify` tries one."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bitsweep.errors import BitsweepError, TrackingError, UsageError


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
    report.add_argument("sweep_id", metavar="SWEEP_ID", help="the sweep's folder name under multirun/")
    report.add_argument("--folder", type=Path, help="where to write it (default: multirun/SWEEP_ID)")
    ui = commands.add_parser("ui", help="start the MLflow UI, with a link to the comparison of all cells")
    ui.add_argument("--port", type=_port, default=5000)
    export = commands.add_parser("export", help="write what a cell measured as a folder that runs by itself")
    export.add_argument("run_id", metavar="RUN_ID", help="MLflow run of a finished cell, as in the report's cells.csv")
    export.add_argument("folder", metavar="DIR", type=Path, help="new folder")
    check = commands.add_parser("verify", help="run such a folder in a new environment, and compare")
    check.add_argument("folder", metavar="DIR", type=Path)
    check.add_argument("--here", action="store_true", help="in this environment: install nothing")
    options = parser.parse_args(given)
    try:
        if options.command == "init":
            start_here(options.folder)
        elif options.command == "report":
            rebuild_report(options.sweep_id, options.folder or Path("multirun") / options.sweep_id)
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
        print("\n".join(("init", "run", "report", "ui", "export", "verify")))
        return
    from bitsweep.hydra_app import main as run

    os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    run(given)


def rebuild_report(sweep_id: str, folder: Path) -> None:
    """Print the table of a sweep and write its report files again, from MLflow alone."""
    from bitsweep.runtime import child
    from bitsweep.sweep import publish
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import find_sweep, read_sweep

    connection = Connection(read_only=True)
    sweep = find_sweep(connection, sweep_id)
    report = read_sweep(connection, sweep, folder=folder)
    lost = sum(row.status == "interrupted" for row in report.rows)
    if lost and sweep.data.tags["status"] != "running" and (folder / "report.html").exists():
        raise UsageError(
            f"{folder}: the report there is complete, while {lost} of its cells are gone from MLflow and the store; "
            "it is kept: name another folder with --folder, or run the sweep again"
        )
    child.warm_up(child.FOR_PICTURES)
    publish(report, folder)


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
