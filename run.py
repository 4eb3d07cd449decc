"""The command: `python run.py model=resnet18 precision=int8`, or a grid with `-m` and commas."""

from pathlib import Path

from bitsweep.cli import run

if __name__ == "__main__":
    run(conf=Path(__file__).with_name("conf"))
