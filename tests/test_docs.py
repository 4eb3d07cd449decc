"""What the README, the docs and YAML comments name exists: files, links, commands, settings, choices, flags, layers."""

import ast
import contextlib
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from bitsweep import cli
from bitsweep.cell import bind
from bitsweep.command_line import checked
from bitsweep.config.binding import CONFIG_GROUPS, REQUIRE, construct
from bitsweep.config.requirement import Requirements
from bitsweep.errors import ConfigError
from bitsweep.metrics import METRICS, described
from bitsweep.report.columns import all_columns
from bitsweep.report.row import RowStatus
from bitsweep.search.sampling import corners
from bitsweep.several_values import spaces
from tests.test_layers import LAYERS

pytestmark = pytest.mark.usefixtures("composing")
ROOT = Path(__file__).parents[1]
CONF, SOURCE = ROOT / "conf", ROOT / "src" / "bitsweep"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHOICES = {
    folder.name: {file.stem for file in folder.glob("*.yaml")}
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name != "hydra"
}
WORKFLOWS = ROOT / ".github" / "workflows"
#: What paths in backticks are relative to.
PLACES = (ROOT, SOURCE, SOURCE / "quantization")
#: Stands for something that the reader fills in.
PLACEHOLDER = re.compile(r"[A-Z_]{2,}")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def _prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _spans(page: Path) -> list[str]:
    """What stands in backticks, each in one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", _prose(page))]


def _commands(page: Path) -> list[list[str]]:
    """Every command that a reader may type, in words."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line.strip().partition("  #")[0] for line in text.splitlines() if line.startswith("    ")]
    programs = ("python", "bitsweep", ".venv/bin/bitsweep", "make")
    words = [shlex.split(line) for line in [*lines, *_spans(page)] if line.split(" ")[0] in programs]
    return [command for command in words if len(command) > 1]


def _commands_of_yaml(file: Path) -> list[list[str]]:
    return [
        shlex.split(line)
        for line in re.findall(r"^#.*?(python run\.py .*?)(?:    |$)", file.read_text(), flags=re.MULTILINE)
    ]


def _commands_of_workflow(file: Path) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"run: (\S*bitsweep .*)", file.read_text())]


ALL_COMMANDS = sorted(
    {shlex.join(command) for page in PAGES for command in _commands(page)}
    | {shlex.join(each) for file in WORKFLOWS.glob("*.yml") for each in _commands_of_workflow(file)}
    | {shlex.join(command) for file in CONF.rglob("*.yaml") for command in _commands_of_yaml(file)}
)


def _exists(path: str) -> bool:
    pattern = PLACEHOLDER.sub("*", path.rstrip("/"))
    found = [next(place.glob(pattern), None) for place in PLACES]
    return any(found) or ("/" not in path and next(SOURCE.rglob(path), None) is not None)


@each_page
def test_files_exist(page: Path) -> None:
    folders = ("src/", "tests/", "notebooks/", "docs/", "conf/", "benchmarks/", ".ci/")
    named = {span for span in _spans(page) if re.fullmatch(r"[\w./*-]+", span)}
    named = {span for span in named if span.endswith(".py") or span.startswith(folders)}
    if page.stem == "architecture":
        named |= {span for span in _spans(page) if re.fullmatch(r"[\w/]+/", span)}
    assert not {path for path in named if not _exists(path)}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", _prose(page)):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", _prose(file), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_can_be_typed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words) <= set(targets)
    elif words[0] == "run.py" or words[0] == "run":
        _compose_each(words[1:])
    elif words[0].startswith("benchmarks/"):
        text = (ROOT / words[0]).read_text()
        assert all(f'"{word}"' in text for word in words if word.startswith("--"))
    else:
        assert program.endswith("bitsweep")
        with contextlib.suppress(SystemExit):
            cli.main([words[0], "--help"])
        usage = capsys.readouterr().out
        named = [word for word in words[1:] if word.startswith("-") or PLACEHOLDER.fullmatch(word)]
        assert all(word in usage for word in named), usage


def _compose_each(words: list[str]) -> None:
    """Bind the cell of a command, and one cell for every further value of a grid."""
    words = [PLACEHOLDER.sub("lenet", word) if word == "model=NAME" else word for word in words]
    if {"--help", "--cfg"} & set(words):
        return
    # YAMLs of other machines are written by `bitsweep probe`.
    words = ["target=local" if word.startswith("target=") else word for word in words]
    for launcher in [word for word in words if word.startswith("hydra/launcher=")]:  # it may be no more than an extra
        assert (CONF / "hydra" / "launcher" / f"{launcher.partition('=')[2]}.yaml").exists()
        words = [word for word in words if word != launcher]
    overrides = [word for word in checked(words) if word != "-m"]
    points = []
    for word, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        if override.is_interval_sweep():  # its ends
            space = spaces([word], params={}, grids={"": {}}, loader=None, config=DictConfig({}))[""]
            points.append([end for (end,) in corners(space)])
            continue
        swept = override.is_sweep_override()
        points.append(
            [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()] if swept else [word]
        )
    for name in [word for word in overrides if word.startswith("+sweep=")]:
        points += [[f"{key}={value}"] for key, value in _first_point(name).items()]
    _bound(tuple(values[0] for values in points))
    for place, values in enumerate(points):
        for value in values[1:]:
            group, _, choice = value.partition("=")
            if group in CHOICES:
                assert choice in CHOICES[group], value
            else:
                _bound(tuple(value if place == other else first[0] for other, first in enumerate(points)))


@functools.cache
def _first_point(sweep: str) -> dict[str, str]:
    """The first values of a named sweep, which parts of its configuration may refer to."""
    sweeper = compose("config", [sweep], return_hydra_config=True).hydra.sweeper
    grid = {**next(iter(sweeper.grids.values()), {}), **sweeper.params}
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in grid.items()])
    return {
        each.key_or_group: next(each.sweep_string_iterator())
        if each.is_sweep_override()
        else each.get_value_element_as_str()
        for each in parsed
    }


@functools.cache
def _bound(overrides: tuple[str, ...]) -> None:
    config = compose("config", list(overrides))
    plain = {name: OmegaConf.to_container(config[name], resolve=True) for name in (*CONFIG_GROUPS, REQUIRE)}
    bind({**plain, "seed": config.seed})


@each_page
def test_settings_and_choices_exist(page: Path) -> None:
    words = {word for span in _spans(page) for word in span.split() if re.match(r"[a-z_]+(\.\w+)*(=|$)", word)}
    for word in words:
        key, equals, value = word.strip("'\"").partition("=")
        group, dot, setting = key.partition(".")
        if PLACEHOLDER.search(value) or group not in CHOICES:
            continue
        if dot and group in CONFIG_GROUPS and not setting.endswith(("py", "md", "yaml")):
            assert _takes(group, setting, value if equals else None), word
        elif equals and not dot:
            assert set(value.split(",")) <= CHOICES[group], word


@functools.cache
def _settings(group: str, choice: str) -> dict[str, Any]:
    config = compose("config", [f"{group}={choice}"])
    plain = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _takes(group: str, setting: str, value: str | None) -> bool:
    """Whether any choice of a group has a setting, and takes one of these values."""
    *outer, last = setting.split(".")
    for choice in sorted(CHOICES[group]):
        settings = OmegaConf.create(_settings(group, choice))
        inner = OmegaConf.select(settings, ".".join(outer)) if outer else settings
        if not OmegaConf.is_dict(inner) or last not in inner:
            continue
        if value is None:
            return True
        given = OverridesParser.create().parse_override(f"key={value}")
        values = given.sweep_iterator() if given.is_sweep_override() else [given.value()]
        try:
            for each in values:
                OmegaConf.update(settings, setting, getattr(each, "text", each))
                plain = OmegaConf.to_container(settings, resolve=True)
                construct(group, plain, CONFIG_GROUPS[group])  # type: ignore[arg-type]
        except ConfigError:
            continue
        return True
    return False


def test_the_readme_names_every_choice() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    named = {group: set(re.findall(r"`([\w]+)`", text)) for group, text in rows if group in CHOICES}
    assert named == {group: choices for group, choices in CHOICES.items() if group != "sweep"}


def _table_under(title: str) -> list[str]:
    """The words in the first column of the tables of a glossary section."""
    section = (ROOT / "docs" / "glossary.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def test_the_glossary_explains_what_a_report_shows() -> None:
    assert {column.title for column in all_columns("95 %", Requirements(drop_pp=1))} <= set(
        _table_under("Columns of the report")
    )
    assert set(get_args(RowStatus)) == set(_table_under("Status of a cell"))
    flags = {re.sub(r" N$", "", flag) for flag in _table_under("Flags")}
    assert set(_flags()) <= flags
    assert not {flag for flag in flags if not any(f'"{flag}' in file.read_text() for file in SOURCE.rglob("*.py"))}


def _flags() -> Iterator[str]:
    """Every text that becomes a flag: in a list that is named so, or added to one."""
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                values = [node.value] if ast.unparse(target) == "flags" else []
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "flags.append":
                values = list(node.args)
            else:
                continue
            for value in values:
                yield from _literals(value)


def _literals(value: ast.expr) -> Iterator[str]:
    """Texts of a list or of a call's argument; of an f-string what is before its first value."""
    if isinstance(value, ast.IfExp):
        yield from _literals(value.body)
    elif isinstance(value, ast.List):
        for element in value.elts:
            yield from _literals(element)
    elif isinstance(value, ast.JoinedStr):
        yield str(ast.literal_eval(value.values[0])).strip()
    elif isinstance(value, ast.Constant):
        yield str(value.value)


def test_the_docs_describe_every_metric() -> None:
    section = (ROOT / "docs" / "measurement.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    assert section.strip().startswith(described())


def test_metrics_that_are_declared_are_measured() -> None:
    named = {name for name in METRICS if not name.endswith("_s")}
    assert len(named) > 40
    written = _texts()
    assert not {name for name in named if not any(re.fullmatch(pattern, name) for pattern in written)}


def _texts() -> set[str]:
    """Every text in the code as a pattern, in which whatever an f-string puts in matches anything but an underscore."""
    found = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[^_]*" for part in node.values
                )
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return {text for text in found if re.search("[a-z]{2}", text)}


def test_the_docs_know_the_layers() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\d+\. (.*)$", text, flags=re.MULTILINE)
    assert tuple(tuple(re.findall(r"`(\w+)`", row)) for row in rows) == LAYERS


@each_page
def test_times_name_their_cpu(page: Path) -> None:
    introduction, *sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    for section in sections:
        tables = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
        timed = [table for table in tables if re.search(r"\bms\b", table) and re.search(r"\| \D{0,3}\d+\.\d", table)]
        if timed or re.search(r"p50 in ms", section):
            assert re.search("EPYC|Xeon", introduction + section), section.partition("\n")[0]
