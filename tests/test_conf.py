"""Every YAML composes, binds to its class, and is planned."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class

from bitsweep import sweep
from bitsweep.experiment import AXES
from bitsweep.store import Store

CONF = Path(__file__).parents[1] / "conf"
CHOICES = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml")) if file.parent.name in AXES]
SWEEPS = sorted(file.stem for file in (CONF / "sweep").glob("*.yaml"))


def _cell(words: list[str]) -> sweep.Cell:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return sweep.read(compose("config", words), words)[0]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="/".join)
def test_a_choice_binds_and_is_planned(group: str, choice: str, tmp_path: Path) -> None:
    cell = _cell([f"{group}={choice}"])
    assert getattr(cell, group).name == choice or cell.precision.name == "fp32"
    (planned,) = sweep.plan([cell], Store(tmp_path), None)
    assert planned.verdict in ("run", "lower", "skip")
    if planned.verdict != "run":
        assert len(planned.reason) > 20
        assert "\n" not in planned.reason


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="/".join)
def test_every_knob_can_be_overridden(group: str, choice: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"{group}={choice}"])
    cls = get_class(config[group]["_target_"])
    assert set(config[group]) - {"_target_"} == {field.name for field in dataclasses.fields(cls)}


def test_every_group_has_a_choice() -> None:
    assert {group for group, _ in CHOICES} == set(AXES)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_named_sweep_is_a_grid(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"+sweep={name}"], return_hydra_config=True)
    sweeper = config.hydra.sweeper
    grids = [sweeper.params, *sweeper.grids.values()]
    words = [f"{key}={value}" for grid in grids for key, value in grid.items()]
    assert any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(words))


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_a_yaml_says_what_it_is(file: Path) -> None:
    assert file.read_text().startswith("# ")
