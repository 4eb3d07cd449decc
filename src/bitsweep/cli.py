"""`bitsweep report` rebuilds a report, `ui` shows runs, `export` makes a bundle of a cell, `verify` runs one again."""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from bitsweep.errors import BitsweepError, TrackingError, UsageError


def main(arguments: list[str] | None = None) -> None:
    """Run a command; ends with exit code 1 or 2 and one line on standard error if it cannot be done."""
    parser = argparse.ArgumentParser(prog="bitsweep", description="Look at what `python run.py` has measured.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="rebuild the report of a sweep from MLflow")
    report.add_argument("sweep_id", metavar="SWEEP_ID", help="the sweep's folder name under multirun/")
    report.add_argument("--folder", type=Path, help="where to write it (default: multirun/SWEEP_ID)")
    ui = commands.add_parser("ui", help="start the MLflow UI, with a link to the comparison of all cells")
    ui.add_argument("--port", type=int, default=5000)
    export = commands.add_parser("export", help="write what a cell measured as a folder that runs by itself")
    export.add_argument("run_id", metavar="RUN_ID", help="MLflow run of a finished cell, as in the report's cells.csv")
    export.add_argument("folder", metavar="DIR", type=Path, help="new folder")
    check = commands.add_parser("verify", help="run such a folder in a new environment, and compare")
    check.add_argument("folder", metavar="DIR", type=Path)
    check.add_argument("--here", action="store_true", help="in this environment: install nothing")
    options = parser.parse_args(arguments)
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


def rebuild_report(sweep_id: str, folder: Path) -> None:
    """Print the table of a sweep and write its report files again, from MLflow alone."""
    from bitsweep.sweep import publish
    from bitsweep.tracking.connection import Connection
    from bitsweep.tracking.reading import read_sweep

    publish(read_sweep(Connection(), sweep_id, folder=folder), folder)


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
    """Start the MLflow UI with one worker and print the link to the comparison view; ends with the server."""
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
