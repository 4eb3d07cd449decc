"""Notebooks run from top to bottom, in an empty folder."""

import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.conftest import as_a_program

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with as_a_program(str(notebook)), matplotlib.rc_context():
        plt.switch_backend("agg")
        runpy.run_path(str(notebook), run_name="__main__")
    plt.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_uses_the_public_names_alone(notebook: Path) -> None:
    text = notebook.read_text()
    assert text.startswith("# %% [markdown]\n# # ") and "\nimport bitsweep as bs\n" in text
    assert "from bitsweep" not in text and "import bitsweep." not in text
