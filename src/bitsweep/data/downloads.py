"""Data sets that torchvision downloads."""

from pathlib import Path

from bitsweep.errors import DataError, one_line


def with_torchvision(variant: str, *, folder: str, dataset: str, hint: str) -> None:
    """Let torchvision download and check a data set.

    Args:
        variant: torchvision's name of it.
        folder: where it goes.
        dataset: ours, for the error.
        hint: what to do by hand instead.

    Raises:
        DataError: the download failed.
    """
    import torchvision

    try:
        getattr(torchvision.datasets, variant)(Path(folder).expanduser(), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"dataset={dataset}: the download failed ({one_line(error)}); connect to the internet, or {hint} and set "
            "dataset.root to it"
        ) from error
