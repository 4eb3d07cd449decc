"""Words that cannot be are refused in one line, before anything is composed; those that can be come through."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import example, given
from hypothesis import strategies as st

from bitsweep import configured
from bitsweep.command_line import checked
from bitsweep.config.overrides import as_word, differing
from bitsweep.config.requirement import Requirements
from bitsweep.errors import ConfigError
from bitsweep.hydra_app import cells_of, main, requirements
from bitsweep.hydra_errors import did_you_mean
from bitsweep.runtime.environment import version_of

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=null"], r"model=null: not a choice; alexnet, .* are"),
        (["=3"], "=3: no key; write KEY=VALUE"),
        (["model"], "model: no value; write KEY=VALUE"),
        (["~model"], "~model: nothing can be left out; set another value, as in model=VALUE"),
        (["~train.compile"], "nothing can be left out; set another value, as in train.compile=VALUE"),
        (["-m", "sweep=smoke", "+sweep=engines"], "one named sweep at a time"),
        (["~hydra.run.dir"], "nothing can be left out; set another value, as in hydra.run.dir=VALUE"),
        (["-m", "precision=[int8,fp16],int4"], r"one choice at a time; a grid is written -m precision=int8,fp16"),
        (["-m", "precision=int8,4"], r"not a choice; bf16, .* are$"),
        (["-m", "precision=range(2,5)"], r"not a choice; bf16, .* are$"),
        (["precision=[int8,fp16]"], r"one choice at a time; a grid is written -m precision=int8,fp16"),
        (["-m", "seed=range(0,0)"], "holds no value"),
        (["-m", "train.lr=interval(1,0)"], r"a number to begin with, and a larger one to end with"),
        (["-m", "train.lr=tag(log,interval(0,1))"], r"equal ratios need a number above 0"),
        (["-m", "train.lr=tag(lgo,interval(0,1))"], r"no such tag as lgo; log is one"),
        (["train.lr=interval(0,1)"], r"several values are a grid; add -m"),
        (["-m", "model=alexnet,"], "a value is missing"),
        (["-m", "model=alexnet,,lenet"], "a value is missing"),
        (["-m", "model=,alexnet"], "a value is missing"),
        (["model.arguments=[1]"], r"should be names with values, as in 'model\.arguments=\{width: 2\}'$"),
        (["dataset.arguments=3"], "should be names with values"),
        (
            ["-m", "model.arguments={width:2},{width:4}"],
            r"; several of a name are given as model\.arguments\.width=2,4$",
        ),
        (["precision=int8,fp16"], "several values are a grid; add -m$"),
        (["seed=" + 5_000 * "9"], r"seed=9+…9+: is too long to be read$"),
        (["model.arguments=" + 2_000 * "[" + 2_000 * "]"], r"model\.arguments=\[+…\]+: is too long to be read$"),
        (["dataset.root=/x/a,b"], r"""add -m, or quote a comma that belongs to the value: "dataset.root='/x/a,b'"$"""),
        (["dataset.root=/tmp/\u00e9"], r"""cannot be read; quote the value: "dataset.root='/tmp/\u00e9'"$"""),
        (["model.weights=a(b"], r"""quote the value: "model.weights='a\(b'"$"""),
        (["a#b=c"], "a#b is no key"),
        (["+foo=1"], "no such key"),
        (["++foo=1"], "no such key"),
        (["+seeds=1"], r"no such key; did you mean seed\?"),
        (["hydra=null"], "Hydra's settings are set one by one"),
        (["hydra.searchpath=[nowhere]"], "there is no folder nowhere"),
        (["--cfg", "job", "-m", "model=lenet,resnet18"], "--multirun --cfg: only one of them can be done"),
        (["--resolve", "model=lenet"], "--resolve: is about what is shown; add --cfg job"),
        (["--package", "model"], "--package: is about what is shown; add --cfg job"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--help=3"], "ignored explicit argument '3'"),
        (["-sc", "install=foo"], "write -sc install=bash"),
        (["-sc", "query=bash"], "is what a shell asks"),
        (["--experimental-rerun", "nowhere"], "nowhere: No such file or directory; name the config.pickle"),
        (["--experimental-rerun", __file__], "is not what Hydra wrote; name the config.pickle"),
        (["--experimental-rerun", __file__, "seed=1"], "repeats what that file says, so seed=1 has no effect"),
        (["-m", "seed=range(0,10,0)"], "a range needs finite numbers, and a step other than 0"),
        (["-m", "seed=range(0,10,nan)"], "a range needs finite numbers, and a step other than 0"),
        (["-m", "seed=range(0,inf)"], "has more than 100000 values|a range needs finite numbers"),
        (["-m", "seed=shuffle(range(0,1000000000))"], "has more than 100000 values; give fewer, or search an interval"),
        (["data="], "data=: name a folder, as in data=FOLDER"),
        (["data=" + 5000 * "x"], r"^data=x{40}\.\.\.: 5,000 characters are more than .*; shorten it$"),
        (["model.weights=a/" + 256 * "x"], r"^model\.weights=a/x{38}\.\.\.: 258 characters are more than"),
        (["model=" + 5000 * "x"], r"^model=x{40}\.\.\.: 5,000 characters"),
        (["-m", "model=lenet," + 5000 * "x"], r"^model=x{40}\.\.\.: 5,000 characters"),
        (["-m", "model.image_size=[8,8],[" + 300 * "x" + ",8]"], r"^model\.image_size=x{40}\.\.\.: 300 characters"),
        ([f"data={__file__}"], "test_command_line.py: is no folder; name one, or what is not there yet"),
        ([f"store={__file__}"], "test_command_line.py: is no folder"),
        (["data=null"], "name a folder, as in data=FOLDER"),
        (["hydra.run.dir="], r"name a folder, as in hydra\.run\.dir=FOLDER"),
        (["hydra.searchpath=nix"], r"should be a list of folders, as in 'hydra\.searchpath=\[FOLDER\]'"),
        (["-m", "hydra.mode=RUN"], "-m hydra.mode=RUN: asks for a grid, and for a single run; leave one of them out"),
        (["hydra/sweeper=optuna"], "wants one number of each cell; search.minutes=30"),
        (["hydra.sweeper=3"], "is chosen with a slash, as in hydra/sweeper=basic"),
        (["hydra.launcher=null"], "is chosen with a slash, as in hydra/launcher=basic"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["+sweep=smoke,engines"], "one named sweep at a time"),
        (["+sweep=[smoke,engines]"], "one named sweep at a time"),
    ],
)
def test_words_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(words)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_what_is_advised_can_be_typed() -> None:
    for word in ("dataset.root='/x/a,b'", "dataset.root='/tmp/\u00e9'", "model.weights='a(b'"):
        assert checked([word]) == [word]


def test_the_folder_of_the_store_may_be_named_alone() -> None:
    words = ["store=/x/y", "store='/x/a,b'", "store.fetch=true"]
    assert checked(words) == ["store.folder=/x/y", "store.folder='/x/a,b'", "store.fetch=true"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1\n", r"a YAML file cannot be read: while parsing .*mine\.yaml"),
        (b"\x00\xff", "a YAML file is not in UTF-8: "),
        (b"defaults: [mine]\n", "the defaults of a YAML file lead back to it"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_one_line(
    text: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_bytes(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bitsweep"])
    with pytest.raises(SystemExit) as ended:
        main(["model=mine", "--config-dir", str(tmp_path), "plan=true"])
    shown = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and re.match(f"error: {message}", shown) and "\n" not in shown, shown


def test_a_plan_of_what_cannot_run_ends_as_the_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.pt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bitsweep"])
    with pytest.raises(SystemExit) as ended:
        main(["model=lenet", "model.weights=w.pt", "train=pretrained", "plan=true"])
    assert ended.value.code == 2
    assert "skip   lenet-ptq-int8-onnxruntime-digits  model.weights=w.pt: is not a file of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train={epochs:1,lrr:3}", r"train\.lrr: no such key; did you mean train\.lr\?"),
        ("++search.cell=1", r"search\.cell: no such key; did you mean search\.cells\?"),
        ("model.weights=${oc.env:NOT_THERE}", r"model\.weights: .*'NOT_THERE' not found.*; give a value"),
        ("model=${nix}", r"\$\{nix\}: no such key, whose value could be taken"),
        ("hydra/launcher=nope", "hydra/launcher=nope: no such choice; choose from basic, joblib"),
        ("hydra.mode=NIX", r"hydra\.mode=NIX: should be one of RUN, MULTIRUN$"),
        ("hydra.mode=[a]", r"hydra\.mode=\[a\]: should be one of RUN, MULTIRUN$"),
        ("hydra.job.num=x", r"hydra\.job\.num=x: should be a whole number$"),
        ("hydra.job.chdir=maybe", r"hydra\.job\.chdir=maybe: should be true or false$"),
        ("hydra.job.name=null", r"hydra\.job\.name=null: needs a value$"),
        ("hydra.job.name=[a]", r"hydra\.job\.name=\[a\]: should be a single value$"),
        ("hydra.job_logging=none", r"hydra\.job_logging=none: should be '\{NAME: VALUE\}'$"),
        ("hydra.sweep=3", r"hydra\.sweep=3: should be '\{NAME: VALUE\}'$"),
        ("hydra.job.env_copy=abc", r"hydra\.job\.env_copy=abc: should be a list, as in '\[VALUE\]'$"),
        ("model=glob(zzz*)", r"model=glob\(zzz\*\): no choice has such a name"),
        ("precision=glob(int*,exclude=int*)", r"precision=glob.*: no choice has such a name"),
        ("data=???", r"data: Missing mandatory value: data; give a value, as in data=VALUE"),
    ],
)
def test_what_a_configuration_lacks_is_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        cells_of([word])


def test_a_glob_of_choices_is_hydras() -> None:
    assert checked(["-m", "model=glob(*net)"]) == ["-m", "model=glob(*net)"]


def test_a_word_that_has_no_effect_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    checked(["-m", "precision=int8,int4", "seed=1", "+precision=fp16", "seed=1"])
    assert capsys.readouterr().err == "precision=int8,int4: has no effect, for +precision=fp16 follows\n"


def test_the_version_is_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        checked(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"bitsweep {version_of('bitsweep')}"


def test_options_may_stand_anywhere() -> None:
    assert checked(["model=lenet", "-m", "seed=1,2"]) == ["-m", "model=lenet", "seed=1,2"]
    assert checked(["+model=lenet", "--config-dir", ".", "seed=1"]) == ["--config-dir", ".", "model=lenet", "seed=1"]


def test_a_named_sweep_needs_no_plus() -> None:
    assert checked(["sweep=smoke", "precision=int8,fp16"]) == ["+sweep=smoke", "precision=int8,fp16"]
    assert checked(["+sweep=smoke", "-m"]) == ["-m", "+sweep=smoke"]


def test_arguments_of_a_network_have_names_of_their_own() -> None:
    words = checked(["model=own", "model.arguments={width:4}", "model.arguments.depth=2"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("config", words).model.arguments == {"width": 4, "depth": 2}


def test_a_knob_of_any_choice_is_known() -> None:
    assert did_you_mean("method.percntile") == "did you mean method.percentile? "
    assert did_you_mean("backend.trget") == "did you mean backend.target? "
    assert did_you_mean("modle") == "did you mean model? "
    assert did_you_mean("zzz") == ""


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())


@given(st.one_of(VALUES, st.lists(VALUES, max_size=3)))
@example("A\u00b9")
def test_a_value_as_a_word_is_read_back(value: object) -> None:
    def plain(read: object) -> object:
        if isinstance(read, list):
            return [plain(each) for each in read]
        return read.text if isinstance(read, QuotedString) else read

    if "\n" not in str(value) and "\r" not in str(value):
        assert plain(OverridesParser.create().parse_override(f"key={as_word(value)}").value()) == value


def test_knobs_that_differ_are_named() -> None:
    knobs = {"a": 1, "b": {"c": [1, 2], "d": "x y"}, "e": None}
    assert list(differing(knobs, {"a": 1, "b": {"c": [1], "d": ""}, "e": 2}, "g.")) == [
        ("g.b.c", "[1,2]"), ("g.b.d", "'x y'"), ("g.e", "null"),
    ]  # fmt: skip


def test_the_command_of_a_cell_makes_the_cell() -> None:
    words = ["scale=small", "method=gptq", "method.damping=0.02", "model=lenet", "data=/x", "dataset=mnist", "seed=2"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", words, return_hydra_config=True)
        cell, _ = configured.read(composed, composed.hydra)
        assert dict(cell.knobs)["method.damping"] == "0.02"
        assert any(knob.startswith("dataset.") and value.startswith("/x") for knob, value in cell.knobs)
        _, _, *typed = shlex.split(cell.command)
        again = compose("config", typed, return_hydra_config=True)
        assert configured.read(again, again.hydra)[0] == cell


def test_the_command_of_a_cell_names_folders_of_choices_from_the_root_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extra" / "train").mkdir(parents=True)
    (tmp_path / "extra" / "train" / "mine.yaml").write_text((CONF / "train" / "smoke.yaml").read_text())
    (cell,) = cells_of(["hydra.searchpath=[extra]", "train=mine", "model=lenet"])
    assert f"hydra.searchpath=[file://{tmp_path}/extra]" in shlex.split(cell.command)


def test_a_yaml_without_a_name_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extra" / "model").mkdir(parents=True)
    text = (CONF / "model" / "lenet.yaml").read_text()
    (tmp_path / "extra" / "model" / "mine.yaml").write_text(text.replace("name: lenet", ""))
    with pytest.raises(ConfigError, match=r"^model\.name: a value is required"):
        cells_of(["hydra.searchpath=[extra]", "model=mine"])


def test_a_field_that_a_yaml_does_not_list_is_added_with_a_plus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "extra" / "train").mkdir(parents=True)
    (tmp_path / "extra" / "train" / "mine.yaml").write_text("_target_: recipes_of_mine.Mine\nname: mine\nepochs: 1\n")
    (tmp_path / "recipes_of_mine.py").write_text("from bitsweep.config.recipe import Recipe as Mine\n")
    words = ["hydra.searchpath=[extra]", "train=mine", "model=lenet"]
    with pytest.raises(
        ConfigError, match=r"^train\.lr: Mine has it, but its YAML does not .*; write \+train\.lr=VALUE"
    ):
        cells_of([*words, "train.lr=0.5"])
    with pytest.raises(ConfigError, match=r"^train\.max_steps: a value is required; give one with \+train\.max_steps="):
        cells_of(words)
    words.append("+train.max_steps=9")
    with pytest.raises(ConfigError, match=r"^train\.lrr: no such key; did you mean train\.lr\?"):
        cells_of([*words, "train.lrr=0.5"])
    (cell,) = cells_of([*words, "+train.lr=0.5"])
    assert cell.train.lr == 0.5


def test_requirements_of_a_report_replace_those_of_its_sweep_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Requirements(drop_pp=2, size_mb=4, objective="size")
    assert requirements([], recorded=recorded) is recorded
    found = requirements(["require.size_mb=null", "require.p50_ms=5"], recorded=recorded)
    assert (found.limits, found.objective) == ({"drop_pp": 2, "p50_ms": 5}, "size")
    assert requirements(["require.size_mb=3"], recorded=recorded).size_mb == 3
    assert "has no effect" not in capsys.readouterr().err
    assert requirements(["require=none", "require.rss_mb=9"], recorded=recorded).limits == {"rss_mb": 9}
    for word, message in (("require.size=4", "did you mean require.size_mb"), ("seed=1", "only requirements")):
        with pytest.raises(ConfigError, match=message):
            requirements([word], recorded=recorded)
