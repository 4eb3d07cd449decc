"""The command itself, on real digits."""

import contextlib
import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bitsweep as bs
from bitsweep import cli
from bitsweep.config.requirement import Requirements
from bitsweep.errors import ConfigError
from bitsweep.job import runner_of
from bitsweep.options import Options
from bitsweep.tracking.connection import Connection
from bitsweep.tracking.registry import register
from tests.conftest import GRID, QUICK, run
from tests.processes import wait_until


def command(*words: str) -> list[str]:
    return [sys.executable, "run.py", *words]


def run_apart(*words: str, code: int = 0, **environment: str) -> str:
    """What the command prints; it must end with the given exit code and without a traceback."""
    finished = subprocess.run(command(*words), capture_output=True, text=True, env=os.environ | environment)
    output = finished.stdout + finished.stderr
    assert finished.returncode == code, output
    assert "Traceback" not in output
    return output


def statuses() -> list[tuple[str, str]]:
    """Kind and status of every MLflow run."""
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        query = "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid where t.key = 'kind'"
        return sorted(database.execute(query))


def cells() -> list[dict[str, str]]:
    """Rows of the newest report."""
    newest = max(Path("multirun").glob("*/cells.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as file:
        return list(csv.DictReader(file))


def newest_report() -> Path:
    """The page of the newest report."""
    return max(Path("multirun").glob("*/report.html"), key=lambda path: path.stat().st_mtime)


@pytest.mark.slow
def test_plug_ins_of_the_users_own_are_run_and_seen_to_change(measured: Path) -> None:
    """They lie in the working directory, and so does what they import."""
    plugin = """
from bitsweep.backends.onnxruntime.backend import OnnxRuntime
from helper import said

class Mine(OnnxRuntime):
    def lower(self, program, folder):
        super().lower(program, folder)
        (folder / "said.txt").write_text(said)
"""
    (measured / "mine.py").write_text(plugin)
    for said in ("hello", "good-bye"):
        (measured / "helper.py").write_text(f"said = {said!r}\n")
        output = run_apart(*QUICK, "precision=fp32", "backend._target_=mine.Mine", "stage=artifact")
        assert re.search(r"^lowered +lenet-none-fp32-onnxruntime-digits", output, re.MULTILINE)
        assert "interrupted" not in output
    made = sorted(file.read_text() for file in measured.rglob("artifact/*/said.txt"))
    assert made == ["good-bye", "hello"]


@pytest.mark.slow
def test_a_grid_is_measured_reported_and_reused(measured: Path) -> None:
    output = Path("output.txt").read_text()
    assert output.count("finished  baseline") == 1
    assert "registered: models:/digits@recommended is version 1, lenet" in output
    rows = cells()
    assert [(row["method"], row["precision"], row["status"]) for row in rows] == [
        ("ptq", "int8", "finished"),
        ("none", "int8", "skipped"),
        ("none", "fp32", "finished"),
    ]
    int8 = rows[0]
    assert float(int8["size_ratio"]) < 0.5
    assert float(int8["parity_agreement"]) > 0.95
    assert float(int8["speedup_low"]) <= float(int8["speedup"]) <= float(int8["speedup_high"])
    assert rows[2]["speedup"] == ""
    newest = newest_report()
    jobs = {path.parent.name.partition("-")[2] for path in newest.parent.glob("*/log.txt")}
    assert any(job.startswith("lenet-none-fp32-") for job in jobs), jobs
    assert not any("ptq-fp32" in job for job in jobs), jobs
    drawn = {
        path.relative_to(newest.parent / "runs").as_posix().partition("/")[2]
        for path in newest.parent.rglob("runs/**/*.png")
    }
    families = {
        "classification": ("classes", "confusion", "curves", "examples"),
        "layers": ("feature_maps", "histograms", "sizes"),
        "speed": ("latency",),
    }
    expected = {f"pictures/{family}/{name}.png" for family, names in families.items() for name in names}
    assert drawn == expected | {"pictures/training.png"}
    assert newest.read_text().count("<details>") == 3
    assert {"auc", "ece", "brier", "log_loss", "f1_macro", "balanced_accuracy", "bits_per_parameter"} <= set(int8)
    assert statuses() == [("baseline", "FINISHED"), ("cell", "FINISHED"), ("cell", "FINISHED"), ("sweep", "FINISHED")]

    again = run(*GRID, "require.size_mb=0.01", code=3)
    assert "finished  " not in again
    assert "no cell is known to keep require.size_mb=0.01" in again
    assert [row["requirements"].partition(" by ")[0] for row in cells()] == ["misses size_mb", "", "misses size_mb"]
    assert [row["status"] for row in cells()] == ["reused", "skipped", "reused"]
    assert [row["top1"] for row in cells()] == [row["top1"] for row in rows]

    models_load_in_a_fresh_process("digits", rows[0]["run_id"])
    registered_once("digits", GRID[1:])

    sweep_id = max(path.parent.name for path in Path("multirun").glob("*/cells.csv"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", sweep_id, "--folder", "rebuilt"])
    assert ended.value.code == 3
    assert Path("rebuilt/cells.csv").read_text() == Path("multirun", sweep_id, "cells.csv").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes")  # MLflow's own, where it logs a table
def test_what_is_recommended_is_registered_from_python(measured: Path) -> None:
    """Cells that are there already are not run again."""
    sweep = bs.run(bs.grid(GRID[1:]), register="of_python")
    assert set(sweep.frame()["status"]) == {"reused", "skipped"}
    version = Connection(read_only=True).client.get_model_version_by_alias("of_python", "recommended")
    assert version.run_id in set(sweep.frame()["run_id"])
    with pytest.raises(ConfigError, match="register=a b"):
        bs.run(bs.grid(GRID[1:]), register="a b")


def models_load_in_a_fresh_process(name: str, run_id: str) -> None:
    """A cell's yields logits; a registered one names the classes that the artifact had, for all kinds of pictures."""
    program = f"""
import io, json, pathlib, numpy as np, mlflow
from PIL import Image
model = mlflow.pyfunc.load_model("runs:/{run_id}/model")
(logits,) = model.predict(model.input_example).values()
model = mlflow.pyfunc.load_model("models:/{name}@recommended")
run_id = mlflow.MlflowClient().get_model_version_by_alias("{name}", "recommended").run_id
recorded = np.load(next(pathlib.Path("mlruns").rglob(f"{{run_id}}/artifacts/bundle/recorded.npz")))
images = recorded["images"]
Image.fromarray(images[0, ..., 0]).save("picture.png")
kinds = ["picture.png", pathlib.Path("picture.png"), pathlib.Path("picture.png").read_bytes(),
         Image.open("picture.png"), images[0], images[0, ..., 0]]
try:
    model.predict(["picture.png", b"nothing"])
except ValueError as error:
    why = str(error)
expected = recorded["logits"].argmax(1).tolist()
print(json.dumps([logits.shape, model.predict(images), expected, model.predict(kinds), why]))
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert "Type hint" not in loaded.stderr
    shape, named, expected, alike, why = json.loads(loaded.stdout.splitlines()[-1])
    assert shape == [1, 10]
    assert named == [str(label) for label in expected]
    assert alike == [named[0]] * 6
    assert why.startswith("picture 1 cannot be read")


def registered_once(name: str, words: Sequence[str]) -> None:
    """The same artifact stays one version, and what a start that was killed has logged is taken up."""
    connection = Connection()
    report = bs.load("latest").report
    report = replace(report, require=Requirements())
    runner = runner_of(Options(), Path("multirun"))

    def registered() -> str:
        return register(name, report, bs.grid(words), connection, runner)

    card = connection.client.get_model_version(name, "1").description
    assert (
        "Measured on" in card
        and "python run.py" in card
        and '\nmodel = mlflow.pyfunc.load_model("models:/digits@recommended")\n' in card
    )
    assert "is version 1" in registered() and len(connection.client.search_model_versions()) == 1
    connection.client.delete_registered_model(name)
    assert "is version 1" in registered()
    assert len(list(Path("mlruns").rglob("python_model.pkl")) + list(Path("mlruns").rglob("classifier.py"))) == 1


def missing_files() -> set[str]:
    """What MLflow's runs say of files that could not be made."""
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        return {value for (value,) in database.execute("select value from tags where key = 'missing_files'")}


@pytest.mark.slow
def test_files_that_cannot_be_made_lose_nothing_and_are_made_by_the_next_start(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own settings leave no room for a picture in Matplotlib, and MLflow refuses to write a model."""
    words = [*QUICK, "protocol.memory=false", "precision=fp32"]
    Path("matplotlibrc").write_text("figure.subplot.left: 0.95")
    output = run_apart(*words, MLFLOW_LOCK_MODEL_DEPENDENCIES="perhaps")
    assert "pictures/speed/latency.png is missing (ValueError: left cannot be >= right)" in output
    assert "model is missing (log onnx model failed: ValueError: MLFLOW_LOCK_MODEL_DEPENDENCIES" in output
    (row,) = cells()
    assert row["status"] == "finished"
    page = newest_report().read_text()
    assert "classification/confusion.png is missing" in page
    assert "digits: accuracy against latency: it could not be drawn (ValueError" in page
    assert statuses() == [("baseline", "FINISHED"), ("cell", "FINISHED"), ("sweep", "FINISHED")]
    assert {text.count(" is missing ") for text in missing_files()} == {1, 8}
    assert next(Path("mlruns").rglob("bundle.json")).with_name("recorded.npz").exists()
    assert not list(Path("mlruns").rglob("MLmodel"))
    export = ["export", row["run_id"], "exported"]
    with pytest.raises(SystemExit):
        cli.main(export)
    assert "its model is not in MLflow; run it again: " in capsys.readouterr().err

    Path("matplotlibrc").unlink()
    run(*words)
    assert not any(missing_files())
    (again,) = cells()
    assert (again["run_id"], again["latency_p50_ms"]) == (row["run_id"], row["latency_p50_ms"])
    assert {path.name for path in Path("mlruns").rglob("*.png")} >= {"training.png", "confusion.png", "latency.png"}
    assert len(list(Path("mlruns").rglob("MLmodel"))) == 1
    cli.main(export)
    assert "is missing" not in newest_report().read_text()
    assert run(*words, "plan=true").startswith("reuse")


@pytest.mark.slow
def test_classes_may_be_called_anything(tracked: Path) -> None:
    names = [
        "$x^{",
        "\\frac{1}{0}$",
        "<script>alert(1)<",
        "\x1b[31mred",
        "two\nlines",
        "\u202egnp",
        "\u05d7|`id`",
        "n" * 200,
    ]
    for number in range(200):
        folder = Path("data $5", names[number % len(names)])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    output = run(
        "dataset=image_folder", "dataset.root='data $5'", "dataset.store_size=28", *QUICK, "precision=int8",
        "protocol.memory=false",
    )  # fmt: skip
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", output)
    (row,) = cells()
    assert row["status"] == "finished"
    assert not any(missing_files())
    assert {path.name for path in Path("mlruns").rglob("*.png")} >= {"classes.png", "confusion.png", "examples.png"}


@pytest.mark.slow
def test_a_failing_cell_fails_alone(measured: Path) -> None:
    words = ["-m", *QUICK, "precision=fp32", "backend=onnxruntime,torch"]
    # Making the other engine's program takes longer than a tenth of a second.
    output = run(*words, "timeout_s=0.1", code=1)
    assert "took longer than timeout_s=0.1 and was stopped" in output
    assert [row["status"] for row in cells()] == ["reused", "failed"]
    assert ("cell", "FAILED") in statuses()
    assert "final race: " not in output
    output = run(*words, "timeout_s=600", "memory_gb=0")
    assert [row["status"] for row in cells()] == ["reused", "finished"]
    assert 0 < float(cells()[1]["top1"]) <= 100
    assert output.count("final race: ") == 1
    again = run(*words)
    assert "failed" not in again and "final race: " not in again
    assert "engines from the fastest, in a final race" in " ".join(again.split())


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_where_it_stopped(tracked: Path) -> None:
    words = [*QUICK, "protocol.memory=false", "precision=fp16"]
    for kind in ("baseline", "compressed", "measurement"):
        victim = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda kind=kind: list(Path("multirun/store").glob(f"{kind}/*")))
        victim.kill()
        victim.wait()
    run(*words)
    assert {row["status"] for row in cells()} <= {"finished", "reused"}
    assert not [status for _, status in statuses() if status == "RUNNING"]
    assert [kind for kind, status in statuses() if status == "FINISHED"].count("cell") == 1
    assert not list(Path("multirun/store").glob("*/*.partial"))


@pytest.mark.slow
def test_a_killed_training_goes_on_after_its_last_epoch(tracked: Path) -> None:
    words = ["stage=baseline", "model=lenet", "model.image_size=28", "train.epochs=6", "train.max_steps=120"]
    while not list(Path("multirun/store/baseline").glob("*.unfinished")):
        shutil.rmtree("multirun", ignore_errors=True)  # one that had finished before it was killed
        with subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as victim:
            wait_until(lambda: list(Path("multirun/store/baseline").glob("*.unfinished")) or victim.poll() is not None)
            victim.kill()
    run(*words)
    (log,) = (log for log in Path("multirun").glob("*/log.txt") if "going on after epoch" in log.read_text())
    epochs = [int(number) for number in re.findall(r"^epoch (\d+):", log.read_text(), re.MULTILINE)]
    assert epochs[0] > 0
    (history,) = Path("multirun/store/baseline").glob("*/history.json")
    assert [epoch["epoch"] for epoch in json.loads(history.read_text())["epochs"]] == list(range(epochs[-1] + 1))
    assert not list(Path("multirun/store/baseline").glob("*.unfinished"))
    output = run(*words, "expect.top1=0.2", code=1)
    assert re.search(r"expect.top1=0.2: the baseline has 0\.\d+ \[.*\] on 449 test images, so it is not the", output)


@pytest.mark.slow
def test_what_is_expected_holds_for_cells_that_were_measured_before(measured: Path) -> None:
    assert "expect.top1=0.01: the baseline has" in run(*QUICK, "precision=fp32", "expect.top1=0.01", code=1)
    assert {row["status"] for row in cells()} == {"failed"}


@pytest.mark.slow
def test_a_folder_belongs_to_one_sweep_and_a_cell_is_measured_again_when_asked(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, "precision=fp32", "hydra.run.dir=out"]
    run(*words)
    first, asked = Path("out/cells.csv").read_text(), Path("out/.hydra/overrides.yaml").read_text()
    again = run("--experimental-rerun", "out/.hydra/config.pickle")
    assert "out holds another sweep: this one is " in again
    assert "1 reuse" in again
    assert re.search(r"^run +lenet-none-fp32.* about [1-9]", run(*words, "remeasure=all", "plan=true"), re.MULTILINE)
    output = run(*words, "hydra.job.chdir=true", "remeasure=all")
    assert re.search(r"^finished +lenet-none-fp32", output, re.MULTILINE)
    run(*words, "seed=7", "plan=true")
    assert Path("out/cells.csv").read_text() == first
    assert Path("out/.hydra/overrides.yaml").read_text() == asked
    assert "remeasure=all" in Path("out-3/.hydra/overrides.yaml").read_text()
    assert [path.name for path in Path().rglob("mlflow.db")] == ["mlflow.db"]
    assert statuses().count(("cell", "FINISHED")) == 3

    compared = bs.compare("out", "out-3", slower_pct=500)
    (cell,) = compared.cells
    assert {figure.metric: figure.verdict for figure in cell.figures}["top1"] == "same"
    assert cell.became in ("same", "better", "undecided") and not compared.regressions
    (cell,) = bs.compare("out", "out-2").cells
    assert (cell.became, cell.figures) == ("reused", ())
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "s.md")
    cli.main(["accept", "latest"])
    gate = ["gate", "out", "--against", "baseline.json", "--slower-pct", "500", "--junit", "junit.xml"]
    cli.main(gate)
    kept = json.loads(Path("baseline.json").read_text())
    kept["cells"].append(kept["cells"][0] | {"cell": {"model": "another"}})
    Path("baseline.json").write_text(json.dumps(kept))
    with pytest.raises(SystemExit) as ended:
        cli.main(gate)
    assert ended.value.code == 1
    assert "regression: another" in capsys.readouterr().out and 'failures="1"' in Path("junit.xml").read_text()


@pytest.mark.slow
def test_help_config_and_plan_answer_without_running(workplace: Path) -> None:
    assert "python run.py" in run("--help") or "precision" in run("--help")
    assert "_target_: bitsweep" in run("--cfg", "job")
    output = run("-m", "model=alexnet,resnet18", "precision=int8,int16,fp32", "method=ptq,none", "plan=true")
    assert "baselines to train: alexnet on digits, resnet18 on digits" in output
    assert output.count("skip ") == 6
    assert not Path("mlflow.db").exists()
    assert not Path("multirun/store").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=resnt18"], r"error: model=resnt18: no such choice; did you mean resnet18\? choose from "),
        (["-m", "model=resnet18,rsnet"], "error: model=rsnet: no such choice"),
        (["-cn", "../config"], r"error: --config-name \.\./config: no such file; name one of conf/"),
        (["-cn", "/x/config"], r"error: --config-name x/config: no such file; name one of conf/"),
        (["modle=resnet18"], r"error: modle: no such key; did you mean model\?"),
        (["train.epoch=3"], r"error: train.epoch: no such key; did you mean train.epochs\?"),
        (["+train.epoch=3"], r"error: train.epoch: no such key; did you mean train.epochs\?"),
        (
            ["model.file=net.onnx"],
            "error: model.file: a choice of model here has no such key, only exported, onnx",
        ),
        (["precision=int8,fp16"], "error: precision=int8,fp16: several values are a grid; add -m"),
        (["train.lr=-1"], "error: train.lr=-1: should be greater than 0"),
        (["train.batch_size=10000000"], "error: train.batch_size=10000000: should be less than or equal to 1000000"),
        (["protocol.block_s=1e300"], r"error: protocol.block_s=1e\+300: should be less than or equal to 3600"),
        (["-m", "train.lr=0.1,fast"], "error: train.lr=fast: should be a valid number"),
        (["stage=nothing"], "error: stage=nothing: should be 'cell', 'baseline', 'artifact' or 'screening'"),
        pytest.param(["precision=int16"], "backend=reference", marks=pytest.mark.slow),
        pytest.param(["precision=int16", "stage=baseline"], "skip .*backend=reference", marks=pytest.mark.slow),
        pytest.param(["dataset=mnist", "dataset.root=/nowhere"], "dataset.root", marks=pytest.mark.slow),
        (["store.folder=/proc/store"], r"error: store.folder=/proc/store: cannot be written .* choose a folder"),
    ],
)
def test_bad_input_is_one_clear_line(words: list[str], message: str, workplace: Path) -> None:
    code = 1 if words[0].startswith("store") else 2
    output = run(*words, code=code)
    errors = [line for line in output.splitlines() if line.startswith("error:") or "skip" in line]
    assert re.search(message, "\n".join(errors)), output


@pytest.mark.slow
def test_a_tracking_server_that_does_not_answer(workplace: Path) -> None:
    output = run("precision=int8", code=1, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert output.strip() == (
        "error: MLFLOW_TRACKING_URI=http://127.0.0.1:9: does not answer; start it, or unset MLFLOW_TRACKING_URI to use "
        "mlflow.db in this folder ([Errno 111] Connection refused)"
    )
    assert [folder.name for folder in Path("multirun").iterdir()] == ["store"]


#: The command on a machine where the reference can be made but not run.
ELSEWHERE = """
import runpy, sys
from bitsweep.backends.torch.backend import Reference
Reference.cannot_run = lambda self: "there is no such machine here"
runpy.run_path("run.py", run_name="__main__")
"""


@pytest.mark.slow
def test_what_cannot_run_here_is_lowered_and_reused(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, "precision=int8", "backend=reference"]

    def elsewhere() -> str:
        finished = subprocess.run([sys.executable, "-c", ELSEWHERE, *words], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    output = elsewhere()
    assert "lower  lenet-ptq-int8-reference-digits  there is no such machine here" in output
    assert "1 cell: 0 run, 1 lower, 0 reuse, 0 skip" in output
    assert re.search(r"lowered   lenet-ptq-int8-reference-digits: .* MB, .* s, there is no such machine here", output)
    (row,) = cells()
    assert (row["status"], row["reason"]) == ("lowered", "there is no such machine here")
    assert float(row["size_ratio"]) < 0.75 and float(row["bits_per_parameter"]) < 9  # the graph takes room, too
    assert not {"top1", "latency_p50_ms", "peak_rss_mb"} & row.keys()
    (kernels,) = Path("mlruns").rglob("kernels.csv")
    assert kernels.read_text().startswith("kernel,operation,arithmetic,multiply-accumulates\n")
    assert {status for _, status in statuses()} == {"FINISHED"}

    assert "reuse  lenet-ptq-int8-reference-digits  lowered in run " in elsewhere()
    assert cells() == [row]
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", row["run_id"], "exported"])
    assert ended.value.code == 2
    assert "not the run of a finished cell" in capsys.readouterr().err
