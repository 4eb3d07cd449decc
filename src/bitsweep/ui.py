"""The MLflow UI with a link to the comparison of all cells."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from bitsweep.errors import TrackingError, UsageError


def serve_ui(port: int) -> None:
    """Start the MLflow UI with one worker and print the link to the comparison page; ends with the server.

    However this ends, by Ctrl-C, a signal or an error, no process of the server is left.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    from bitsweep.tracking.address import find_address
    from bitsweep.tracking.connection import COMPARISON, Connection

    served = find_address().served
    with contextlib.closing(socket.socket()) as probe:
        if not served and probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(f"--port {port}: something listens there already; choose another port")
    tracked = Connection(read_only=True)
    if served:
        print(f"compare the cells: {tracked.ui_url}{COMPARISON}", flush=True)
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
            print(f"compare the cells: {tracked.ui_url_at(f'http://127.0.0.1:{port}')}{COMPARISON}", flush=True)
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
