"""The command: `python run.py model=resnet18 precision=int8`, or a grid with `-m` and commas."""

from pathlib import Path

from bitsweep.hydra_app import main

if __name__ == "__main__":
    main(conf=Path(__file__).with_name("conf"))
