"""Measuring on a machine that is reached by ssh: a real server on this one."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bitsweep.backends.executorch.backend import ExecuTorch
from bitsweep.backends.litert.backend import LiteRt
from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from bitsweep.cli import main
from bitsweep.config.backend import Backend
from bitsweep.config.precision import Precision
from bitsweep.config.protocol import MeasurementProtocol
from bitsweep.data.network_input import network_input
from bitsweep.errors import CellFailed, UnreachableTarget, UsageError
from bitsweep.measuring import elsewhere, kit, on_device
from bitsweep.measuring.accuracy import Material
from bitsweep.measuring.passes import Subject
from bitsweep.methods.none import NoCompression
from bitsweep.probing import Asked, _compared, probe
from bitsweep.results import Split, Splits
from bitsweep.runtime.environment import current_cpu, physical_cores, version_of
from bitsweep.runtime.progress import silent
from bitsweep.targets.ssh import Connection, SshMachine, shell_path, why_it_failed
from tests.backends.conftest import CLASSES, SIZE, SmallNet, skip_unless_lowered
from tests.processes import wait_until
from tests.test_sweep import cells, run

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
pytestmark = pytest.mark.skipif(
    not Path(SSHD).exists() or shutil.which("ssh") is None or os.getuid() != 0,
    reason="no OpenSSH server, or not root: apt-get install openssh-server",
)
FP32 = Precision(name="fp32", weights="float32", activations="float32")


@dataclass(frozen=True)
class Server:
    """A server of this user's, and how to reach it."""

    folder: Path
    port: int
    options: tuple[str, ...]

    def start(self) -> None:
        subprocess.run([SSHD, "-f", str(self.folder / "sshd_config")], check=True)
        wait_until((self.folder / "pid").exists)

    def stop(self) -> None:
        process = int((self.folder / "pid").read_text())
        os.kill(process, 15)
        wait_until(lambda: not (self.folder / "pid").exists())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("identity", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/identity.pub {folder}/others\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
    )
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    options = ("-F", "none", "-i", f"{folder}/identity", "-p", str(port), "-o", f"UserKnownHostsFile={folder}/known")
    server = Server(folder, port, options)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def target(server: Server, tmp_path: Path) -> SshMachine:
    cpu = current_cpu()
    return SshMachine(
        name="edge",
        host="root@127.0.0.1",
        options=server.options,
        python=sys.executable,
        folder=str(tmp_path / "there"),
        cpu_model=cpu.model,
        architecture=cpu.architecture,
        flags=tuple(sorted(cpu.flags)),
        physical_cores=1,
    )


@pytest.fixture
def prepared(target: SshMachine, tmp_path: Path) -> tuple[Path, Subject, Material]:
    """A kit of a small float network, which is its own twin."""
    return _prepared(OnnxRuntime(name="onnxruntime"), target, tmp_path)


def _prepared(backend: Backend, target: SshMachine, tmp_path: Path) -> tuple[Path, Subject, Material]:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    scheme = backend.scheme(FP32, target.cpu)
    splits = _splits()
    method = NoCompression(name="none")
    network = SmallNet().eval()
    backend.lower(
        method.compress(network, splits, input_shape=(3, SIZE, SIZE), scheme=scheme, seed=0).program, artifact
    )
    protocol = MeasurementProtocol(name="quick", warmup_s=0.01, blocks=6, block_s=0.01, repeats=0, eval_batch=24)
    subject = Subject(
        artifact=artifact, twin=artifact, backend=backend, protocol=protocol, scheme=scheme, target=target
    )  # fmt: skip
    (folder := tmp_path / "kit").mkdir()
    material = Material(
        splits=splits, validation_N=np.array([3, 5, 8]), batches=iter, trained=None, compressed=None,
    )  # type: ignore[arg-type] # fmt: skip
    kit.write_kit(folder, subject, material, input_shape=(3, SIZE, SIZE), probe=None)
    return folder, subject, material


def _splits() -> Splits:
    images = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)
    split = Split(images=images, labels=np.arange(64) % CLASSES)
    classes, third = tuple(map(str, range(CLASSES))), (0.25, 0.5, 0.75)
    return Splits(train=split, val=split, test=split, classes=classes, mean_C=third, std_C=third, fingerprint="")


def _measured(target: SshMachine, folder: Path, results: Path) -> dict[str, object]:
    results.mkdir()
    target.measure(folder, results, silent)
    return json.loads((results / "notes.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [OnnxRuntime(name="onnxruntime"), LiteRt(name="litert"), ExecuTorch(name="executorch", max_batch=64)],
    ids=lambda backend: backend.name,
)
def test_the_same_is_computed_there_and_sent_once(backend: Backend, target: SshMachine, tmp_path: Path) -> None:
    skip_unless_lowered(backend, FP32)
    folder, subject, material = _prepared(backend, target, tmp_path)
    splits = material.splits
    notes = _measured(target, folder, tmp_path / "first")
    assert {file.name for file in (tmp_path / "first").iterdir()} == {
        "test.npy", "validation.npy", "latency_samples.npz", "notes.json",
    }  # fmt: skip
    images = network_input(
        np.asarray(splits.test.images), input_shape=(3, SIZE, SIZE), mean_C=splits.mean_C, std_C=splits.std_C
    )
    infer = subject.backend.load(subject.artifact, threads=1)
    expected = np.concatenate([infer(images[start : start + 24]) for start in range(0, len(images), 24)])
    np.testing.assert_array_equal(np.load(tmp_path / "first" / "test.npy"), expected)
    chosen = np.load(tmp_path / "first" / "validation.npy")
    np.testing.assert_allclose(chosen, expected[[3, 5, 8]], rtol=1e-4, atol=1e-5)
    assert notes["threads"] == 1
    assert notes["peak_rss_mb"] > 0  # type: ignore[operator]
    assert notes["batches"]["1"]["computing_share"] > 0  # type: ignore[index]
    there = tmp_path / "there"
    assert not list((there / "jobs").iterdir())
    sent = {part: part.stat().st_ino for part in (there / "parts").iterdir()}
    _measured(target, folder, tmp_path / "again")
    assert {part: part.stat().st_ino for part in (there / "parts").iterdir()} == sent


@pytest.mark.slow
def test_what_is_missing_there_is_said_in_a_line(
    target: SshMachine, prepared: tuple[Path, Subject, Material], tmp_path: Path
) -> None:
    folder, _, _ = prepared

    def reason(kind: type[Exception], **changed: object) -> str:
        (results := tmp_path / f"results{len(list(tmp_path.iterdir()))}").mkdir()
        with pytest.raises(kind) as raised:
            replace(target, **changed).measure(folder, results, silent)  # type: ignore[arg-type]
        assert not list(results.iterdir())
        return str(raised.value)

    assert "has no python7: set target.python to its interpreter (bitsweep probe --python)" in reason(
        CellFailed, python="python7"
    )
    assert "runs nothing as /bin/true: set target.python to its interpreter" in reason(CellFailed, python="/bin/true")
    assert "lacks a package" in reason(CellFailed, python=_bare_python(tmp_path))
    stranger = reason(UnreachableTarget, options=target.options[:-2])
    assert "Host key verification failed; its key is not known here: connect once by hand (ssh -F none" in stranger
    (tmp_path / "known").write_text((known := Path(target.options[-1].partition("=")[2])).read_text().split()[0])
    with (tmp_path / "known").open("a") as file:
        file.write(f" {(known.parent / 'identity.pub').read_text()}")
    changed = reason(UnreachableTarget, options=(*target.options[:-1], f"UserKnownHostsFile={tmp_path / 'known'}"))
    assert "its key is another one than before" in changed
    assert f'forgotten (ssh-keygen -f "{tmp_path / "known"}" -R "[127.0.0.1]:' in changed
    (tmp_path / "file").write_text("")
    no_folder = reason(CellFailed, folder=str(tmp_path / "file"))
    assert re.search("cannot create directory .*; set target.folder to one that it may write to", no_folder)
    request = json.loads((folder / "job" / "request.json").read_text())
    for changed in ({"isa": "asimd"}, {"model": "Another"}, {"cores": 1000}):
        other = request | {"machine": request["machine"] | changed}
        (folder / "job" / "request.json").write_text(json.dumps(other))
        is_another = reason(CellFailed)
        assert f"is {current_cpu().model} (" in is_another
        assert f"{next(iter(changed.values()))}" in is_another.partition("but its YAML says")[2]
    request["requirements"] |= {"numpy": "1.0", "nothing": "2.0"}
    (folder / "job" / "request.json").write_text(json.dumps(request))
    other = reason(CellFailed)
    assert f"has numpy {np.__version__}, lacks nothing; what is measured needs: pip install numpy==1.0" in other
    assert not list((tmp_path / "there" / "jobs").iterdir())


def _bare_python(tmp_path: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    return str(tmp_path / "bare" / "bin" / "python")


@pytest.mark.slow
def test_a_connection_that_is_cut_in_a_copy(
    server: Server, target: SshMachine, prepared: tuple[Path, Subject, Material], tmp_path: Path
) -> None:
    """What arrived in part is nothing, and the next try sends it again."""
    (results := tmp_path / "results").mkdir()
    bulk = next(part for part in (prepared[0] / "parts").iterdir() if (part / "images.npy").exists())
    np.save(bulk / "more.npy", np.random.default_rng(0).integers(0, 256, 4_000_000, dtype=np.uint8))
    with _cut_after(1_000_000, to=server.port) as port:
        known = ("-o", f"HostKeyAlias=[127.0.0.1]:{server.port}")
        options = (*server.options[:5], str(port), *server.options[6:], *known)
        with pytest.raises(UnreachableTarget, match=r"cannot be reached: .*; the same command goes on from here"):
            replace(target, options=options).measure(prepared[0], results, silent)
    assert not list(results.iterdir())
    there = tmp_path / "there" / "parts"
    # The other side cleans up when it sees the end of the connection.
    wait_until(lambda: not any("." in part.name for part in there.iterdir()))
    assert not (there / bulk.name).exists()
    _measured(target, prepared[0], tmp_path / "later")
    assert (there / bulk.name / "more.npy").read_bytes() == (bulk / "more.npy").read_bytes()


def test_a_measurement_says_that_it_runs_and_ends_with_the_connection() -> None:
    """Nothing else would tell either of it, and the next measurement waits for this one."""
    program = "import threading, time; from bitsweep.measuring import on_device; on_device._BEAT_S = 0.1; "
    tells = "threading.Thread(target=on_device._tell_a_reader_that_it_runs, daemon=True).start(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program + tells], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == [b"\n", b"\n"]
        process.stdout.close()
        assert process.wait(50) == 1


@pytest.mark.parametrize("give", [None, lambda pipe: pipe.write(bytes(20_000_000))], ids=["says", "takes"])
def test_what_hangs_there_is_given_up(give: Any, target: SshMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is alive tells nothing of what runs there."""
    monkeypatch.setattr("bitsweep.targets.ssh._SILENT_S", 0.5)
    with pytest.raises(
        UnreachableTarget, match=r"target=edge \(.*\) has said nothing for 0.5 s: what runs there hangs"
    ):
        Connection(target)._ssh("sleep 3", give=give)


@pytest.mark.slow
def test_what_says_something_now_and_then_may_take_long(target: SshMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsweep.targets.ssh._SILENT_S", 4.0)
    assert Connection(target)._ssh("for n in 1 2 3 4 5 6; do sleep 1; echo $n; done").split()[-1] == b"6"

    def slowly(pipe: Any) -> None:
        for _ in range(6):
            time.sleep(1)
            pipe.write(b"1")

    assert Connection(target)._ssh("cat", give=slowly) == b"111111"


def test_a_measurement_that_was_stopped_for_good_keeps_no_other_waiting() -> None:
    holds = "import sys; from bitsweep.measuring.on_device import _alone\nwith _alone(): print('alone', flush=True); "
    named = ["-c", f"{holds}sys.stdin.read()", "bitsweep.measuring.on_device"]
    with subprocess.Popen([sys.executable, *named], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stopped:
        assert stopped.stdout
        assert stopped.stdout.readline() == b"alone\n"
        os.kill(stopped.pid, signal.SIGSTOP)
        with on_device._alone():
            assert stopped.wait(50) == -signal.SIGKILL


def test_what_no_job_needs_is_removed_there(target: SshMachine, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for name in ("jobs/mine", "jobs/other", "jobs/cut", *(f"parts/{part}" for part in ("a", "b", "new", "old"))):
        (there / name).mkdir(parents=True)
    (there / "jobs" / "other" / "request.json").write_text('{"artifacts": {"artifact": "../../parts/b"}}')
    for name, days in (("jobs/cut", 3), ("parts/old", 40), ("parts/new", 20)):
        os.utime(there / name, (then := time.time() - 86_400 * days, then))
    connection = Connection(target)
    (source := tmp_path / "source").mkdir()
    os.utime(source, (0, 0))
    connection.send(source, "parts/sent")  # whose time is that of the copy
    os.utime(there / "parts" / "sent", (0, 0))
    connection.send(source, "parts/sent")  # or of the last use
    connection.remove("jobs/mine", parts=["a", "b"])
    assert [job.name for job in (there / "jobs").iterdir()] == ["other"]
    assert {part.name for part in (there / "parts").iterdir()} == {"b", "new", "sent"}


@contextlib.contextmanager
def _cut_after(sent: int, *, to: int) -> Iterator[int]:
    """A port that passes connections on to another, and cuts each off after as many bytes were sent."""

    def pass_on(source: socket.socket, sink: socket.socket, most: float) -> None:
        with contextlib.suppress(OSError):
            while most > 0 and (data := source.recv(65_536)):
                sink.sendall(data)
                most -= len(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve(caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", to)) as server:
            back = threading.Thread(target=pass_on, args=(server, caller, math.inf))
            back.start()
            pass_on(caller, server, sent)
            back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_other_results_than_were_asked_for(tmp_path: Path, prepared: tuple[Path, Subject, Material]) -> None:
    (tmp_path / "notes.json").write_text("{}")
    np.save(tmp_path / "test.npy", np.zeros((1, 2)))
    with pytest.raises(CellFailed, match=r"target=edge sent other results than .*test.npy is \(1, 2\), not \(64, 10\)"):
        elsewhere.judge(prepared[1], prepared[2], tmp_path, probe=None, folder=tmp_path)


def test_a_full_disk_is_told_before_what_follows_from_it() -> None:
    full = "tar: ./images.npy: Cannot write: No space left on device"
    assert why_it_failed([full, "tar: Exiting with failure status due to previous errors", ""]) == full
    short = "OSError: 3072 requested and 3040 written"  # NumPy, of a full disk
    assert why_it_failed([short, "last"]) == short
    cut = "tar: ./model.onnx: Wrote only 1024 of 10240 bytes"
    assert why_it_failed([cut, "tar: Exiting with failure status due to previous errors"]) == cut
    assert why_it_failed(["first", "last", ""]) == "last"
    assert why_it_failed([]) == ""


def test_a_connection_that_ends_without_a_word(target: SshMachine) -> None:
    """So it ends where the system there kills what takes too much memory."""
    with pytest.raises(UnreachableTarget, match="ended without a word; perhaps what ran there was killed"):
        Connection(target)._ssh("kill -9 $$")


def test_a_copy_that_another_was_faster_with(
    target: SshMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, packed = Connection(target), tarfile.open
    (source := tmp_path / "source").mkdir()
    (source / "file").write_text("content")

    def other_first(**given: Any) -> tarfile.TarFile:
        monkeypatch.setattr(tarfile, "open", packed)
        connection.send(source, "parts/same")
        return packed(**given)

    monkeypatch.setattr(tarfile, "open", other_first)
    connection.send(source, "parts/same")
    assert [part.name for part in (tmp_path / "there" / "parts").iterdir()] == ["same"]
    assert (tmp_path / "there" / "parts" / "same" / "file").read_text() == "content"


def test_a_shell_that_greets_and_has_a_syntax_of_its_own(server: Server, target: SshMachine, tmp_path: Path) -> None:
    """All that is asked of it is to start another one."""
    key, shell = tmp_path / "key", tmp_path / "shell.py"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    greets = "import os, shlex, sys; print('Welcome!', end='', flush=True); words = shlex.split(sys.argv[1])[1:]; "
    shell.write_text(f"{greets} os.execvp(words[0], words)")
    starts = f'command="{sys.executable} {shell} \\"$SSH_ORIGINAL_COMMAND\\""'
    (server.folder / "others").write_text(f"{starts} {key.with_suffix('.pub').read_text()}")
    connection = Connection(replace(target, options=(*server.options[:3], str(key), *server.options[4:])))
    assert connection._ssh("echo 'it is'") == b"it is\n"
    (source := tmp_path / "source").mkdir()
    for _ in range(2):
        connection.send(source, "parts/same")


@pytest.mark.parametrize(
    ("name", "path"), [("~/my files", "/home/me/my files"), ("my files", "my files"), ("$x", "$x")]
)
def test_a_path_is_one_word_of_the_shell_there(name: str, path: str) -> None:
    said = subprocess.run(
        ["sh", "-c", f"printf %s {shell_path(name)}"], env={"HOME": "/home/me"}, stdout=subprocess.PIPE
    )
    assert said.stdout.decode() == path


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "a b", "", "a;b"])
def test_no_host_is_taken_for_an_option(host: str, tmp_path: Path) -> None:
    asked = Asked(host=host, name="edge", python="python3", folder="there", options=())
    with pytest.raises(UsageError, match="host="):
        list(probe(asked, into=tmp_path, install=None))


def test_what_an_engine_needs_there_is_told() -> None:
    here = version_of("onnxruntime")
    assert _compared(OnnxRuntime, {"onnxruntime": here}) == f"onnxruntime=={here}, as here"
    assert _compared(OnnxRuntime, {"onnxruntime": "1.0"}) == (
        f"onnxruntime is 1.0 there; its cells need onnxruntime=={here}"
    )


@pytest.mark.parametrize(
    ("engine", "said"), [("onnx", "choose from onnxruntime"), ("litert", "made on this machine, where litert-torch is")]
)
def test_an_engine_that_cannot_be_installed_there_is_refused(
    engine: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bitsweep.probing.version_of", lambda package: "absent")
    asked = Asked(host="root@127.0.0.1", name="edge", python="python3", folder="there", options=())
    with pytest.raises(UsageError, match=f"--install {engine}: .*{said}"):
        list(probe(asked, into=tmp_path, install=[engine]))


@pytest.mark.slow
def test_a_cell_is_measured_there(server: Server, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Described by the real command, planned, measured and reused."""
    option = [f"--option={word}" for word in server.options]
    python, there = f"--python={sys.executable}", f"--folder={workplace}/there"
    main(["probe", "root@127.0.0.1", *option, python, there, "--config-dir", "mine"])
    assert "onnxruntime" in capsys.readouterr().out
    written = yaml.safe_load((workplace / "mine" / "target" / "edge.yaml").read_text())
    assert (written["cpu_model"], written["physical_cores"]) == (current_cpu().model, physical_cores())
    words = (
        "-m", "--config-dir", "mine", "model=mlp", "model.image_size=8", "train=smoke", "train.max_steps=20",
        "protocol=smoke", "precision=int8", "target=edge",
    )  # fmt: skip
    server.stop()
    try:
        assert "lowered   mlp-ptq-int8-onnxruntime-digits-edge" in run(*words, code=1)
    finally:
        server.start()
    (away,) = cells()
    assert (away["status"], "top1" in away) == ("lowered", False)
    assert away["reason"].endswith("Connection refused; the same command goes on from here")
    output = run(*words)
    assert "finished  baseline" not in output
    (edge,) = cells()
    assert (edge["target"], edge["status"]) == ("edge", "finished")
    assert float(edge["parity_agreement"]) > 0.99
    assert min(float(edge[name]) for name in ("latency_p50_ms", "speedup", "peak_rss_mb")) > 0
    text = max((workplace / "multirun").glob("2*/report.md")).read_text()  # the newest
    assert "digits on edge: deploy" in text
    planned = run(*words, "target=local,edge", "backend=onnxruntime,inductor", "plan=true")
    assert "4 cells: 2 run, 1 reuse, 1 skip" in planned
    assert "backend=inductor runs on this machine alone: use backend=onnxruntime" in planned
