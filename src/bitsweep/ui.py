"""The MLflow UI with a link to the comparison of all cells."""

import contextlib
import errno
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
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # not everywhere is there a terminal that hangs up
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    from bitsweep.tracking.address import find_address
    from bitsweep.tracking.connection import COMPARISON, Connection

    served = find_address().served
    if not served:
        _require_free(port)
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
        server.wait()
        raise TrackingError(f"mlflow ui ended with exit code {server.returncode}; its output is above")
    finally:
        for ends in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, ends)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)


def _require_free(port: int) -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server's own, just ended
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "something uses it already" if error.errno == errno.EADDRINUSE else error.strerror
            raise UsageError(f"--port {port}: {why}; choose another port") from error


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
