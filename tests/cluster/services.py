"""Real services on this machine, each in a folder of its own: Slurm with one node, and MLflow on PostgreSQL."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

#: Where Debian has PostgreSQL's programs, by version.
_POSTGRES = Path("/usr/lib/postgresql")
#: Seconds in which a service, or a job, is expected to do what it does.
_PATIENCE_S = 300
_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MaxArraySize=3
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking(*programs: str) -> str:
    """Why services cannot be set up here; empty where they can."""
    if os.getuid() != 0:
        return "only root can set up services of other users"
    missing = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}; tests/cluster/run installs them" if missing else ""


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    return max(_POSTGRES.glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """One node that is this machine, with a key of its own; gives the variables by which its commands find it."""
    for name in ("munge", "controller", "node"):
        (folder / name).mkdir()
    (folder / "munge").chmod(0o755)
    (key := folder / "munge" / "key").write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(
        _SLURM_CONF.format(
            host=socket.gethostname(), folder=folder, controller_port=free_port(), node_port=free_port(),
            cpus=os.cpu_count(),
        )
    )  # fmt: skip
    found = {"SLURM_CONF": str(conf)}
    places = {name: f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")}
    commands = [
        ["munged", "--force", "--foreground", f"--socket={folder}/munge/socket", *places.values()],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    with contextlib.ExitStack() as running:
        for command in commands:
            running.enter_context(_process(command, log=folder / f"{command[0]}.out", **found))
            if command[0] == "munged":
                wait_until((folder / "munge" / "socket").exists, folder / "munged.out")

        def idle() -> bool:
            told = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, env=os.environ | found)
            return told.stdout.strip() == "idle"

        wait_until(idle, folder / "slurmctld.out")
        yield found


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """MLflow on a database of PostgreSQL; gives its address."""
    programs = postgres_programs()
    assert programs
    port, address = free_port(), f"http://127.0.0.1:{free_port()}"
    database = f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    folder.chmod(0o755)
    (files := folder / "postgres").mkdir()
    shutil.chown(files, "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    made = [*as_postgres, str(programs / "initdb"), "-D", str(files / "data"), "-A", "trust", "-U", "postgres"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd=files)
    options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": files, "fsync": "off"}
    given = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    server = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2],
        "--workers", "2", "--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    postgres = [*as_postgres, str(programs / "postgres"), "-D", str(files / "data"), *given]
    with (
        _process(postgres, log=folder / "postgres.out"),
        _process(server, log=folder / "mlflow.out", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
    ):

        def healthy() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
            return False

        wait_until(healthy, folder / "mlflow.out")
        yield address


@contextlib.contextmanager
def _process(command: list[str], *, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service that ends with the block."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env=os.environ | environment
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(happened: Callable[[], bool], log: Path) -> None:
    """Wait for something that a service does.

    Raises:
        AssertionError: it does not; the end of its log tells why.
    """
    end = time.monotonic() + _PATIENCE_S
    while not happened():
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.2)
