"""Configurations of the many jobs of a sweep."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
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


@pytest.mark.parametrize(
    "more",
    [
        ["+method.more=1"],
        ["~require"],
        ["dataset={name: mine}"],
        ["method=qat", "method.epochs=1"],
        ["~scale"],
    ],
)
def test_overrides_of_all_kinds_stay_with_their_jobs(more: list[str], loader: ConfigLoaderImpl) -> None:
    whole = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
    jobs = [["seed=1", *more], ["seed=2"], [*more, "seed=3"]]
    assert list(compose_all(loader, whole, jobs)) == [loader.load_sweep_config(whole, job) for job in jobs]


def test_the_files_of_the_same_choices_are_found_once(
    loader: ConfigLoaderImpl, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(**given: Any) -> DefaultsList:
        asked.append([each.input_line for each in given["overrides_list"]])
        return create_defaults_list(**given)

    monkeypatch.setattr(composing, "create_defaults_list", noted)
    whole = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
    assert len(list(compose_all(loader, whole, JOBS))) == 4
    assert asked == [["model=lenet", "precision=int8"], ["model=resnet20", "precision=int8"]]
