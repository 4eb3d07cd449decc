"""`bitsweep ui` ends with all that it started, whenever and however it is ended."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bitsweep.errors import UsageError
from bitsweep.tracking.connection import Connection
from bitsweep.ui import serve_ui
from tests.processes import runs, wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "early"),
    [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGHUP, False)],
)
def test_nothing_is_left_of_the_server(
    number: signal.Signals, early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:  # as in the background of a shell's script
        pytest.skip(f"{number.name} is ignored here, and so by all that is started")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    Connection()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [str(Path(sys.executable).with_name("bitsweep")), "ui", "--port", port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ui:
        process = psutil.Process(ui.pid)
        if early:
            wait_until(lambda: any("/numpy/" in each.path for each in process.memory_maps()))  # it imports MLflow
        else:
            assert ui.stdout
            assert "compare the cells" in next(line for line in ui.stdout if "compare" in line)
        started = process.children(recursive=True)
        assert early or started
        ui.send_signal(number)
        try:
            _, said = ui.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            ui.kill()
            raise
    assert ui.returncode == 130
    assert "Traceback" not in said
    assert not any(runs(each.pid) for each in started)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port)))


def test_a_port_that_is_bound_is_refused_though_nothing_listens_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: something uses it already; choose another port"):
            serve_ui(port)
