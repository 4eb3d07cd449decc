"""Sweeps from Python, as a program of the user's has them."""

import re
import runpy
from pathlib import Path

import pandas
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import bitsweep as bs
from bitsweep.errors import ConfigError, UsageError
from tests.conftest import as_a_program

DOCS = Path(__file__).parents[1] / "docs" / "python.md"
QUICK = "model=mlp model.image_size=8 train=smoke train.max_steps=20 protocol=smoke protocol.memory=false"


@pytest.fixture(autouse=True)
def _workplace(workplace: Path) -> None:
    """Nothing is left in the checkout."""


def test_public_names_are_there() -> None:
    assert set(bs.__all__) == {"compare", "compress", "describe", "grid", "load", "lower", "plan", "run", "space"}
    for name in bs.__all__:
        assert getattr(bs, name).__doc__ and name in dir(bs)
    with pytest.raises(AttributeError, match="no attribute 'gird'"):
        bs.gird  # noqa: B018


@pytest.mark.slow
def test_a_space_has_an_interval_of_allowed_values_and_a_search_has_an_end() -> None:
    with pytest.raises(ConfigError, match="no interval of values"):
        bs.space("method=gptq")
    with pytest.raises(ConfigError, match=r"method\.damping=-0\.1: should be greater"):
        bs.space("method=gptq method.damping=interval(-0.1,0.5)")
    with pytest.raises(ConfigError, match="say search_minutes=30"):
        bs.run(bs.space("method=gptq method.damping=interval(0.1,0.5)"))


@pytest.mark.slow
def test_words_are_those_of_the_command_line() -> None:
    cells = bs.grid("model=lenet,cnn precision=int8,fp16 method.percentile=99.9")
    assert [(cell.model.name, cell.precision.name) for cell in cells] == [
        ("lenet", "int8"), ("lenet", "fp16"), ("cnn", "int8"), ("cnn", "fp16"),
    ]  # fmt: skip
    assert cells[0].command == "bitsweep run model=lenet method.percentile=99.9"
    assert bs.grid(["model=lenet", "precision=int8"]) == bs.grid("model=lenet precision=int8")
    assert [cell.require.limits for cell in bs.grid("precision=int8,fp16 require.drop_pp=1")] == [{"drop_pp": 1}] * 2
    assert {cell.backend.name for cell in bs.grid("sweep=smoke")} and len(bs.grid("sweep=smoke")) > 1


def test_a_cell_knows_the_value_of_every_knob() -> None:
    (cell,) = bs.grid("method=three_sigma precision=int8 model=own model.factory=nets.py:net model.arguments={width:2}")
    knobs = ("method.weight_range", "protocol.batch_sizes", "model.arguments.width", "method.nothing", "backend.name")
    assert [cell.setting(knob) for knob in knobs] == ["std", "[1]", "2", "", "onnxruntime"]


def test_a_program_may_use_hydra_itself(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("own: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        (cell,) = bs.grid("model=lenet precision=int8")
        assert (cell.model.name, compose("config").own) == ("lenet", 1)
        with pytest.raises(ConfigError):
            bs.grid("model=lenet precision=int9")
        assert compose("config").own == 1
    assert not GlobalHydra.instance().is_initialized()


def test_a_folder_of_yamls_of_ones_own_is_found() -> None:
    folder = Path("mine") / "model"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text("defaults: [lenet, _self_]\nname: small\nimage_size: 32\n")
    (cell,) = bs.grid("model=small", config_dir=Path("mine"))
    assert bs.grid("model=small", config_dir="mine") == [cell]
    assert [each.verdict for each in bs.plan([cell], store="kept")] == [each.verdict for each in bs.plan([cell])]
    assert (cell.model.name, cell.model.input_shape) == ("small", (3, 32, 32))
    assert "hydra.searchpath" in cell.command


@pytest.mark.parametrize(
    ("words", "message"),
    [("model=lenett", "lenet"), ("train.lr=-1", "train.lr=-1: should be greater than 0"), ("lenet", "no value")],
)
def test_bad_words_are_errors(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bs.grid(words)


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no cells"):
        bs.run([])
    with pytest.raises(ConfigError, match="timeout_s=-1"):
        bs.run(bs.grid(QUICK), timeout_s=-1)
    with pytest.raises(UsageError, match=r"mlflow\.db: there is no such file"):
        bs.load("2000-01-01")


def test_files_may_be_edited_between_two_calls() -> None:
    Path("w.pt").write_text("hello")
    cells = bs.grid(f"{QUICK} train=pretrained model.weights=w.pt")
    assert [each.verdict for each in bs.plan(cells)] == ["skip"]
    Path("w.pt").write_bytes(b"\x80\x02")
    assert [each.verdict for each in bs.plan(cells)] == ["run"]
    Path("w.pt").unlink()
    assert [each.verdict for each in bs.plan(cells)] == ["skip"]


@pytest.mark.slow
def test_a_sweep_is_planned_run_and_read() -> None:
    (program,) = re.findall(r"```python\n(import bitsweep as bs\n\ncells.*?)```", DOCS.read_text(), re.DOTALL)
    program = re.sub(r"model=lenet .*?(?=\")", f"{QUICK} precision=int8", program)
    program = program.replace("bs.run(cells)", 'bs.run(cells, folder=Path("out/first"))')
    program = (
        f"from pathlib import Path\n{program}"
        + """
assert sweep.frame().equals(bs.load("first", folder=Path("out/first")).frame())
assert [each.verdict for each in bs.plan(cells)] == ["reuse"]
assert list(bs.load("latest", require="require.size_mb=100").frame()["requirements"]) == ["meets"]
sweep.frame().to_pickle("frame.pkl")
assert sweep.cell(0).row == cell.row
predicted, samples = cell.predictions, cell.latency_samples
assert (predicted.label == predicted.predicted).mean() == cell.metrics["top1"]
assert len(cell.logits) == len(predicted) == cell.metrics["test_images"]
ours = samples[(samples.of == "cell") & (samples.batch == 1)]
assert abs(ours.ms.median() / cell.metrics["latency_p50_ms"] - 1) < 1e-9 and 2 <= ours.block.nunique() <= 24
assert set(samples.of) == {"cell", "fp32"} and len(cell.layers) == 3
assert "confusion.png" in [picture.name for picture in cell.pictures] and cell.pictures[0].exists()
for wrong, said in (
    ({"presicion": "int8"}, "did you mean precision?"),
    ({"precision": "int4"}, "cell(precision=int4): no such cell; in this sweep precision is int8"),
):
    try:
        sweep.cell(**wrong)
    except ValueError as error:
        assert said in str(error)
    else:
        raise AssertionError(wrong)
# Another sweep that was planned before this one ended finds the measurement, and logs it no second time.
from bitsweep.job import run_cell
from bitsweep.options import Options
again = run_cell(cells[0], Options(), folder=Path("out/second"), sweep_id="second")
assert again.run_id == cell.row.run_id
# A search finds it as well, and says why it runs nothing else.
both = bs.grid("QUICK precision=int8,int4")
searched = bs.run(both, folder=Path("out/searched"), search_cells=1).frame()
assert list(searched["status"]) == ["reused", "skipped"], searched
assert searched["reason"][1].startswith("not run: "), searched
# So does one with an interval, of which it takes as many points as it is told.
space = bs.space("QUICK precision=int8,int4 method.percentile=interval(99.0,99.9)")
searched = bs.run(space, folder=Path("out/sampled"), search_cells=1, search_points=4).frame()
assert sorted(set(searched["status"])) == ["finished", "skipped"] and len(searched) == 4, searched
""".replace("QUICK", QUICK)
    )
    Path("sweep.py").write_text(program)
    with as_a_program("sweep.py") as printed:
        runpy.run_path("sweep.py", run_name="__main__")
        printed.seek(0)
        output = printed.read()
    assert "1 run, 0 reuse" in output and "test images are not recognised" in output
    frame = pandas.read_pickle("frame.pkl")
    assert list(frame["precision"]) == ["int8"] and list(frame["status"]) == ["finished"]
    assert frame["top1"].between(0, 1).all() and (frame["latency_p50_ms"] > 0).all()
    assert Path("out/first/report.html").exists()
