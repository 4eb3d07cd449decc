"""Every YAML composes, binds to its class, and is planned."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import DictConfig

import bitsweep as bs
from bitsweep import configured, planning
from bitsweep.cell import Cell
from bitsweep.config.binding import CONFIG_GROUPS, REQUIRE
from bitsweep.config.configurable import NOT_IN_KEYS, marked
from bitsweep.runtime.store import Store

pytestmark = pytest.mark.usefixtures("composing")
CONF = Path(__file__).parents[1] / "conf"
GROUPS = (*CONFIG_GROUPS, REQUIRE)
CHOICES = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml")) if file.parent.name in GROUPS]
SWEEPS = sorted(file.stem for file in (CONF / "sweep").glob("*.yaml"))
#: The studies, with less of those that have many cells.
STUDIES: dict[str, dict[str, str]] = {
    "dissertation": {"model": "mobilenetv3", "precision": "int16,int8"},
    "three_sigma": {},
    "cnn_lab": {"precision": "int8"},
    "resnet_cifar": {},
    "factorization": {"model": "convnet"},
}


@functools.cache
def _composed(*words: str) -> DictConfig:
    return compose("config", list(words), return_hydra_config=True)


@functools.cache
def _cell(*words: str) -> Cell:
    """The cell of a configuration as Hydra composes it, with Hydra's own settings in it."""
    config = _composed(*words)
    return configured.read(config, config.hydra)[0]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=map("/".join, CHOICES))
def test_a_choice_binds_and_is_planned(group: str, choice: str, tmp_path: Path) -> None:
    cell = _cell(f"{group}={choice}")
    assert getattr(cell, group).name == choice or cell.precision.name == "fp32"
    (planned,) = planning.plan([cell], Store(tmp_path), None)
    assert planned.verdict in ("run", "lower", "skip")
    if planned.verdict != "run":
        assert len(planned.reason) > 20
        assert "\n" not in planned.reason


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=map("/".join, CHOICES))
def test_every_knob_can_be_overridden(group: str, choice: str) -> None:
    config = _composed(f"{group}={choice}")
    cls = get_class(config[group]["_target_"])
    assert set(config[group]) - {"_target_"} == {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=map("/".join, CHOICES))
def test_comments_list_what_a_knob_takes(group: str, choice: str) -> None:
    cls = get_class(_composed(f"{group}={choice}")[group]["_target_"])
    taken = {name: set(get_args(hint)) for name, hint in get_type_hints(cls).items() if get_origin(hint) is Literal}
    lines = re.findall(r"^(\w+):.*?# (.*)$", (CONF / group / f"{choice}.yaml").read_text(), flags=re.MULTILINE)
    for name, comment in lines:
        listed = {word.strip() for word in re.split("[;:]", re.sub(r"\(.*?\)", "", comment))[0].split(",")}
        if listed & taken.get(name, set()):
            assert {word for word in listed if word.isidentifier()} <= taken[name], name
            assert taken[name] <= set(re.findall(r"\w+", comment)), name


def test_every_group_has_a_choice() -> None:
    assert {group for group, _ in CHOICES} == set(GROUPS)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_named_sweep_is_a_grid(name: str) -> None:
    sweeper = _composed(f"+sweep={name}").hydra.sweeper
    grids = [sweeper.params, *sweeper.grids.values()]
    words = [f"{key}={value}" for grid in grids for key, value in grid.items()]
    assert any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(words))


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_as_it_stands(name: str, scale: str, sample_data: Path, tmp_path: Path) -> None:
    less = [f"{group}={choices}" for group, choices in STUDIES[name].items()]
    cells = bs.grid([f"+sweep={name}", f"scale={scale}", f"data={sample_data}", *less])
    planned = planning.plan(cells, Store(tmp_path), None)
    assert {each.verdict for each in planned} <= {"run", "lower", "skip"}
    assert all(len(each.reason) > 20 for each in planned if each.verdict != "run")
    todo = [each.cell for each in planned if each.verdict == "run"]
    assert {cell.dataset.name for cell in todo} == {cell.dataset.name for cell in cells} - {"imagenet"}
    assert {cell.method.name for cell in todo} >= {cell.method.name for cell in cells}
    if scale == "small":
        assert not any(cell.model.weights for cell in todo)
        assert all(cell.train.max_steps <= 400 and cell.protocol.name == "smoke" for cell in todo)
        assert all(getattr(cell.method, "max_steps", 0) <= 40 for cell in todo if cell.method.name == "qat")


def test_a_scale_is_for_any_cell() -> None:
    neutral, small = _cell(), _cell("scale=small")
    assert (neutral.train.name, neutral.protocol.name) == ("default", "default")
    assert (small.train.name, small.protocol.name) == ("fast", "smoke")
    assert dataclasses.replace(small, train=neutral.train, protocol=neutral.protocol) == neutral
    assert _cell("scale=small", "train=default").train == neutral.train


@pytest.mark.parametrize("choice", sorted(file.stem for file in (CONF / "dataset").glob("*.yaml")))
def test_one_word_places_all_data_sets(choice: str) -> None:
    before, after = (_cell(f"dataset={choice}", *words).dataset for words in ([], ["data=/somewhere"]))
    if "${oc.select:data" in (CONF / "dataset" / f"{choice}.yaml").read_text():
        assert any(getattr(after, place).startswith("/somewhere") for place in marked(after, NOT_IN_KEYS))
    else:
        assert before == after


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_a_yaml_says_what_it_is(file: Path) -> None:
    assert file.read_text().startswith("# ")
