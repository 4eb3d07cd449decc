"""The command: `python run.py model=resnet18 precision=int8`, or a grid with `-m` and commas."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bitsweep.errors import BitsweepError
from bitsweep.hydra_app import explain, run_job
from bitsweep.results import Outcome


@hydra.main(  # type: ignore[untyped-decorator]
    version_base="1.3", config_path="conf", config_name="config"
)
def main(config: DictConfig) -> Outcome | None:
    """Run a cell, or a job of a sweep."""
    return run_job(config)


if __name__ == "__main__":
    # Hydra would print its own traceback and advice; errors are told here, in one line.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except BitsweepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
