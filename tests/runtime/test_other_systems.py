"""Importing and planning need nothing that only some systems have."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
import psutil  # knows each system itself
for module in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[module] = None
for name in ("SIGKILL", "SIGBUS"):
    delattr(signal, name)
for name in ("fork", "getuid", "sched_getaffinity", "setsid", "killpg"):
    delattr(os, name)
os.environ["USERNAME"] = "somebody"
from bitsweep.hydra_app import main
main(["plan=true", "model=lenet"])
"""


@pytest.mark.slow
def test_a_plan_is_made_where_there_is_no_posix(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run    lenet-ptq-int8-onnxruntime-digits" in done.stdout
