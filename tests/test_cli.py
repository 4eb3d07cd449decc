"""`bitsweep ui` and `bitsweep report`, as a user meets them."""

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bitsweep import cli

CHROMIUM = shutil.which("chromium")
BITSWEEP = [str(Path(sys.executable).with_name("bitsweep"))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_comparison_view_shows_the_cells(measured: Path) -> None:
    from playwright.sync_api import sync_playwright

    command = [*BITSWEEP, "ui", "--port", str(_free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        assert server.stdout is not None
        try:
            link = next(line.split()[-1] for line in iter(server.stdout.readline, "") if "compare the cells" in line)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1600, "height": 1200})
                page.set_default_timeout(120_000)
                page.goto(link)
                for name in ("lenet-none-fp32-onnxruntime-digits", "lenet-ptq-int8-onnxruntime-digits"):
                    page.get_by_text(name).first.wait_for()
                # A chart for each metric, with the cells as its bars, in sections.
                page.get_by_text("accuracy/agreement", exact=True).first.wait_for()
                for section in ("latency", "size", "cost"):
                    page.get_by_text(section, exact=True).first.wait_for(state="attached")
                browser.close()
        finally:
            os.killpg(server.pid, signal.SIGTERM)


@pytest.mark.slow
def test_a_cell_can_be_taken_away_and_run_elsewhere(measured: Path) -> None:
    (table,) = Path("multirun").glob("*/cells.csv")
    with table.open() as file:
        cell = next(row for row in csv.DictReader(file) if row["precision"] == "int8")
    cli.main(["export", cell["run_id"], "bundle"])
    (artifact,) = [path for path in measured.glob("multirun/store/artifact/*/model.onnx") if _same(path)]
    assert artifact.stat().st_size == round(1e6 * float(cell["size_mb"]))
    again = subprocess.run([*BITSWEEP, "export", cell["run_id"], "bundle"], capture_output=True, text=True)
    assert again.returncode == 2
    assert "error: bundle: is not empty" in again.stderr
    verified = subprocess.run([*BITSWEEP, "verify", "bundle", "--here"], capture_output=True, text=True, check=True)
    assert "\n16 of 16 predictions as recorded" in verified.stdout


def _same(path: Path) -> bool:
    return path.read_bytes() == Path("bundle/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "2000-01-01"], "/mlflow.db: there is no such file; run this in the folder of the sweep"),
        (["report", "latest", "--folder", __file__], r"test_cli.py is no folder that can be written; name another"),
        (["report", "latest", "--folder", f"{__file__}/in"], r"test_cli.py is no folder that can be written"),
        (["report", "2000-01-01", "--folder", "new", "require.drop_pp=1"], "/mlflow.db: there is no such file"),
        (["report"], "the following arguments are required: SWEEP_ID\n"),
        (["show"], "invalid choice: 'show'"),
        (["export", "0" * 32, "bundle"], "/mlflow.db: there is no such file"),
        (["export", "bundle"], "error: export bundle: needs RUN_ID and DIR"),
        (["verify", "nowhere"], "error: nowhere: no bundle"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_its_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert re.fullmatch(r"bitsweep \d\S+\n", capsys.readouterr().out)


def test_an_interrupt_while_it_starts_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def find_spec(self, name: str, *rest: object) -> None:
            if name == "bitsweep.hydra_app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "bitsweep.hydra_app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit, match="130"):
        cli.main(["run", "model=lenet"])


def test_output_that_nobody_reads_ends_it_quietly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*BITSWEEP, "run", "--cfg", "job"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_is_printed_without_standard_output_gets_into_no_other_file(tmp_path: Path) -> None:
    """The first file that is opened would be standard output otherwise."""
    script = (
        "from bitsweep.runtime.interruption import ended_from_outside\n"
        "import os\n"
        "with ended_from_outside(), open('kept', 'w') as kept:\n"
        "    kept.write(str(kept.fileno() > 2))\n"
        "    print('said')\n"
        "    os.system('echo said')\n"
    )
    closed = [sys.executable, "-c", "import os, sys; os.closerange(0, 3); os.execv(sys.executable, sys.argv[1:])"]
    done = subprocess.run([*closed, sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert (tmp_path / "kept").read_text() == "True"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_without_room_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*BITSWEEP, "run", "--cfg", "job"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


def test_a_port_that_is_taken_is_named(workplace: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = subprocess.run([*BITSWEEP, "ui", "--port", str(port)], capture_output=True, text=True)
    assert finished.returncode == 2
    assert f"error: --port {port}: something uses it already" in finished.stderr
