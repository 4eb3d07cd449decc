"""`bitsweep run` measures, `report` rebuilds a report, `ui` shows runs, `export` makes a bundle, `verify` tries one."""

import argparse
import contextlib
import os
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
    parser = argparse.ArgumentParser(prog="bitsweep", description="Measure compressed classifiers, and look at it.")
    commands = parser.add_subparsers(dest="command", required=True)
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
        if options.command == "report":
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


def rebuild_report(sweep_id: str, folder: Path) -> None:
    """Print the table of a sweep and write its report files again, from MLflow alone."""
    from bitsweep.sweep import publish
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import find_sweep, read_sweep

    connection = Connection()
    publish(read_sweep(connection, find_sweep(connection, sweep_id), folder=folder), folder)


def export_bundle(run_id: str, folder: Path) -> None:
    """Write the artifact of a cell, from MLflow alone, with all that it takes to run it."""
    from bitsweep.deploy import bundle
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import download_bundle

    download_bundle(Connection(), run_id, folder)
    bundle.complete(folder)
    print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def verify_bundle(folder: Path, *, here: bool) -> None:
    """Say whether a bundle still does what was recorded."""
    from bitsweep.deploy import bundle

    print(bundle.verify(folder, here=here))


def serve_ui(port: int) -> None:
    """Start the MLflow UI with one worker and print the link to the comparison page; ends with the server."""
    from bitsweep.tracking.connection import Connection

    tracked = Connection()
    if tracked.uri.startswith("http"):
        print(f"compare the cells: {tracked.uri.rstrip('/')}/{tracked.comparison_path}", flush=True)
        return
    with contextlib.closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(f"--port {port}: something listens there already; choose another port")
    # With its defaults the server is fifteen processes and 2.5 GB.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([*command, "--backend-store-uri", tracked.uri], env=environment)
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
        server.terminate()
