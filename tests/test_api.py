"""Sweeps from Python, as a program of the user's has them."""

import subprocess
import sys
from pathlib import Path

import pandas
import pytest

import bitsweep as bs
from bitsweep.errors import ConfigError, UsageError

QUICK = "model=mlp model.image_size=8 train=smoke train.max_steps=20 protocol=smoke protocol.memory=false"


@pytest.fixture(autouse=True)
def _workplace(workplace: Path) -> None:
    """Nothing is left in the checkout."""


def test_words_are_those_of_the_command_line() -> None:
    cells = bs.grid("model=lenet,cnn precision=int8,fp16 method.percentile=99.9")
    assert [(cell.model.name, cell.precision.name) for cell in cells] == [
        ("lenet", "int8"), ("lenet", "fp16"), ("cnn", "int8"), ("cnn", "fp16"),
    ]  # fmt: skip
    assert cells[0].command == "bitsweep run model=lenet method.percentile=99.9"
    assert bs.grid(["model=lenet", "precision=int8"]) == bs.grid("model=lenet precision=int8")
    assert [cell.require.limits for cell in bs.grid("precision=int8,fp16 require.drop_pp=1")] == [{"drop_pp": 1}] * 2
    assert {cell.backend.name for cell in bs.grid("sweep=smoke")} and len(bs.grid("sweep=smoke")) > 1


def test_a_folder_of_yamls_of_ones_own_is_found() -> None:
    folder = Path("mine") / "model"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text("defaults: [lenet, _self_]\nname: small\nimage_size: 32\n")
    (cell,) = bs.grid("model=small", config_dir=Path("mine"))
    assert (cell.model.name, cell.model.input_shape) == ("small", (3, 32, 32))
    assert "hydra.searchpath" in cell.command


@pytest.mark.parametrize(
    ("words", "message"),
    [("model=lenett", "lenet"), ("train.lr=-1", "train.lr=-1: should be greater than 0"), ("lenet", "no value")],
)
def test_bad_words_are_errors(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bs.grid(words)


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no cells"):
        bs.run([])
    with pytest.raises(ConfigError, match="timeout_s=-1"):
        bs.run(bs.grid(QUICK), timeout_s=-1)
    with pytest.raises(UsageError, match=r"mlflow\.db: there is no such file"):
        bs.load("2000-01-01")


@pytest.mark.slow
def test_a_sweep_is_planned_run_and_read() -> None:
    program = f"""
from pathlib import Path
import bitsweep as bs

if __name__ == "__main__":
    cells = bs.grid("{QUICK} precision=int8")
    assert [each.verdict for each in bs.plan(cells)] == ["run"]
    report = bs.run(cells, folder=Path("out/first"))
    assert report.frame().equals(bs.load("first", folder=Path("out/first")).frame())
    assert [each.verdict for each in bs.plan(cells)] == ["reuse"]
    assert list(bs.load("first", require="require.size_mb=100").frame()["requirements"]) == ["meets"]
    report.frame().to_pickle("frame.pkl")
    # Another sweep that was planned before this one ended finds the measurement, and logs it no second time.
    from bitsweep.job import run_cell
    from bitsweep.options import Options
    again = run_cell(cells[0], Options(), folder=Path("out/second"), sweep_id="second")
    assert again.run_id == report.rows[0].run_id
"""
    Path("sweep.py").write_text(program)
    ran = subprocess.run([sys.executable, "sweep.py"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    frame = pandas.read_pickle("frame.pkl")
    assert list(frame["precision"]) == ["int8"] and list(frame["status"]) == ["finished"]
    assert frame["top1"].between(0, 1).all() and (frame["latency_p50_ms"] > 0).all()
    assert Path("out/first/report.html").exists()
