"""Configurations of the many jobs of a sweep."""

from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from bitsweep import composing
from bitsweep.composing import compose_all

CONF = Path(__file__).parents[1] / "conf"
JOBS = [
    [f"model={model}", "precision=int8", f"method.calibration_images={images}"]
    for model in ("lenet", "resnet20")
    for images in (16, 32)
]


@pytest.fixture
def loader() -> Iterator[ConfigLoaderImpl]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize("processes", [1, 2])
def test_they_are_those_that_hydra_composes(
    processes: int, loader: ConfigLoaderImpl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a folder of the user's is searched."""
    monkeypatch.setattr(composing, "_EACH", 2)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.yaml").write_text("defaults: [default]\nname: mine\nlr: 0.5\n")
    searched = [f"hydra.searchpath=[file://{tmp_path}]"]
    whole = loader.load_configuration("config", searched, run_mode=RunMode.MULTIRUN)
    jobs = [[*job, "train=mine"] for job in JOBS]
    found = list(compose_all(loader, whole, jobs, processes=processes))
    assert found == [loader.load_sweep_config(whole, job) for job in jobs]
    assert [config.train.lr for config in found] == [0.5] * 4
    assert [config.method.calibration_images for config in found] == [16, 32, 16, 32]


def test_what_another_process_cannot_compose_is_told_as_usual(
    loader: ConfigLoaderImpl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "_EACH", 2)
    whole = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
    made = compose_all(loader, whole, [*JOBS, ["model=nothing"]], processes=2)
    assert len([next(made) for _ in JOBS]) == 4
    with pytest.raises(HydraException, match="nothing"):
        next(made)
