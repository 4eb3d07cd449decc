"""What changes a key, and what does not: one thing at a time."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest

from bitsweep import cell as cell_module
from bitsweep import stages
from bitsweep.cell import Cell
from bitsweep.config import backend as backend_module
from bitsweep.runtime.environment import Cpu, Gpu
from bitsweep.stages import ARTIFACT, BASELINE, COMPRESSED, DATA, key_of
from tests.test_cell import cell

SOURCE = Path(__file__).parents[1] / "src"
#: Names of stages, one letter each: data, baseline, compressed, artifact, probe, measurement.
LETTERS = {name[0]: name for name in ("dataset", "baseline", "compressed", "artifact", "probe", "measurement")}


def keys(of: Cell) -> dict[str, str]:
    """Stage -> key, of the stages of a cell and not of its twin."""
    return {stage.name: stage.key_of(each) for stage, each in stages.needs(of) if each is of}


def changed(before: dict[str, str], after: dict[str, str]) -> str:
    """Letters of the stages whose keys differ."""
    return "".join(letter for letter, name in LETTERS.items() if before[name] != after[name])


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("knobs", "stages_changed"),
    [
        ({"dataset__val_share": 0.2}, "dbcam"),
        ({"dataset__split_seed": 1}, "dbcam"),
        ({"model__image_size": 40}, "bcam"),
        ({"train__lr": 0.5}, "bcam"),
        ({"seed": 1}, "bcam"),
        ({"method__calibration_images": 7}, "cam"),
        ({"precision__weights": {"bits": 6, "signed": True, "symmetric": True, "per_channel": True}}, "capm"),
        ({"backend": "openvino"}, "capm"),
        ({"backend__name": "other"}, "apm"),
        ({"protocol__eval_batch": 65}, "cam"),
        ({"protocol__parity_images": 100}, "cam"),
        ({"protocol__blocks": 6}, "m"),
        ({"protocol__threads": 1}, "m"),
        ({"protocol__validation_images": 100}, "m"),
        ({"protocol__final": 0}, ""),
        ({"require__drop_pp": 1}, ""),
        ({}, ""),
    ],
)
def test_a_setting_changes_the_keys_of_the_stages_that_read_it(knobs: dict[str, object], stages_changed: str) -> None:
    assert changed(keys(cell()), keys(cell(**knobs))) == stages_changed


def test_no_work_takes_more_than_is_in_keys() -> None:
    """All parameters are known by name, so that none can be left out of a key."""
    for stage in vars(stages).values():
        if not isinstance(stage, stages.Stage):
            continue
        for work in stage.work:
            known = {*stages.settings_of(work, cell()), *stages.inputs_of(work, cell())}
            assert {*signature(work).parameters} - known <= {"folder", "progress", "unfinished", "rank"}


def test_what_is_said_of_a_cell_changes_no_key() -> None:
    assert keys(replace(cell(), knobs=(("a", "b"),), command="run it")) == keys(cell())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_programs_are_shared_between_cpus(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it is said of each that it does not compute so."""
    programs, reasons = set(), set()
    for flags in (["avx2"], ["avx2", "avx512_vnni"]):
        cpu = Cpu(model="some", architecture="x86_64", flags=frozenset(flags))
        monkeypatch.setattr("bitsweep.targets.local.current_cpu", lambda cpu=cpu: cpu)
        bound = cell(precision=precision, backend="openvino")
        programs.add(COMPRESSED.key_of(bound))
        reasons.add(bound.scheme.why)
    assert (len(programs), len(reasons)) == (1, 2)


def test_data_are_the_same_wherever_they_lie(tmp_path: Path) -> None:
    found = []
    for name in ("here.npz", "there.npz"):
        train, test = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 8), np.uint8)
        labels = np.arange(8) % 2
        np.savez(tmp_path / name, x_train=train, y_train=labels, x_test=test, y_test=labels)
        found.append(DATA.key_of(cell(dataset="npz", dataset__root=str(tmp_path / name))))
    assert found[0] == found[1]


def test_files_and_code_that_were_edited_meanwhile_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, nets = tmp_path / "w.pt", tmp_path / "nets_that_change.py"
    weights.write_bytes(b"\x80\x021")
    nets.write_text("def net(): return 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    here = cell(model="own", model__factory=f"{nets}:net", model__weights=str(weights))
    key = BASELINE.key_of(here)
    assert not BASELINE.has_changed(here)
    for file, content in ((weights, b"\x80\x022"), (nets, b"def net(): return 2\n")):
        before = file.read_bytes()
        for number, (written, changes) in enumerate(((content, True), (before, False)), 1):
            file.write_bytes(written)
            os.utime(file, ns=(number, number))
            assert (BASELINE.has_changed(here), BASELINE.key_of(here)) == (changes, key)
    weights.unlink()  # it had been read
    assert not BASELINE.has_changed(here)


def test_weights_are_part_of_the_baseline(tmp_path: Path) -> None:
    """By their content, wherever the file lies."""
    contents = {"a": b"\x80\x021", "b": b"\x80\x021", "c": b"\x80\x022"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    a, b, c, named, none = (
        BASELINE.key_of(cell(model__weights=weights))
        for weights in (*(str(tmp_path / n) for n in contents), "imagenet", "")
    )
    assert a == b
    assert len({a, c, named, none}) == 4


def test_backends_with_the_same_scheme_share_a_program() -> None:
    here, there = cell(precision="fp32", backend="torch"), cell(precision="fp32")
    assert COMPRESSED.key_of(here) == COMPRESSED.key_of(there)
    assert ARTIFACT.key_of(here) != ARTIFACT.key_of(there)


def test_what_was_only_lowered_is_another_cell_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for gpu in (None, Gpu(model="NVIDIA L4", architecture="sm89")):
        monkeypatch.setattr(stages, "current_gpu", lambda gpu=gpu: gpu)
        bound = cell()
        found.add((ARTIFACT.key_of(bound), key_of(bound)))
    (artifact, before), (again, after) = found
    assert artifact == again
    assert before != after


def test_machine_code_belongs_to_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that for a CPU does not."""
    found = {"cpu": set(), "cuda": set()}
    for gpu in (
        Gpu(model="NVIDIA A100", architecture="sm80"),
        Gpu(model="NVIDIA L4", architecture="sm89"),
        Gpu(model="NVIDIA L40S", architecture="sm89"),
    ):
        for module in (backend_module, cell_module, stages):
            monkeypatch.setattr(module, "current_gpu", lambda gpu=gpu: gpu)
        for device, seen in found.items():
            seen.add(ARTIFACT.key_of(cell(precision="fp32", backend="inductor", backend__device=device)))
    assert {device: len(seen) for device, seen in found.items()} == {"cpu": 1, "cuda": 3}


# --------------------------------------------------------------------------- code


def test_a_method_of_the_users_own_counts_with_all_that_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments apart; and what the method of this package that it extends does counts too."""
    texts = {
        "users_method.py": """
from bitsweep.methods.ptq import PostTrainingQuantization

class Method(PostTrainingQuantization):
    def round_weights(self, graph, grid, batches, *, seed):
        from users_helper import first
        return super().round_weights(first(graph), grid, batches, seed=seed)
""",
        "users_helper.py": "import users_second\n\ndef first(graph):\n    return users_second.second(graph)\n",
        "users_second.py": "def second(graph):\n    return graph\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def of_users() -> dict[str, str]:
        return keys(cell(method___target_="users_method.Method"))

    before = of_users()
    assert changed(before, keys(cell())) == "cam"
    for name, text in texts.items():
        (tmp_path / name).write_text(text + "# Done\n")
    assert of_users() == before
    (tmp_path / "users_second.py").write_text("def second(graph):\n    return graph or None\n")
    assert changed(before, of_users()) == "cam"


#: A file, a text in it and another in its place, and the stages whose keys change of an 8-bit cell on ONNX Runtime.
EDITS = [
    ("data/splits.py", "_BLOCK_BYTES = 1 << 25", "_BLOCK_BYTES = 1 << 24", "dbcam"),
    ("datasets/digits.py", "self.test_share,", "self.test_share / 2,", "dbcam"),
    ("models/torchvision.py", "weights=None", "weights=True", "bcam"),
    ("training/checkpoint.py", "WORTH = 20", "WORTH = 30", "bcam"),
    ("training/network.py", "(512, 128), 0.3", "(512, 64), 0.3", "bcam"),
    ("methods/ptq.py", "return round_weights(graph", "return round_weights(graph.graph", "cam"),
    ("config/precision.py", "else self.bits)) - 1", "else self.bits)) - 2", "capm"),
    ("stage_work.py", "_PROBE_IMAGES = 8", "_VIEWED_IMAGES = 9", "cam"),
    ("quantization/calibration/histograms.py", "BINS = 2048", "BINS = 1024", "capm"),
    ("quantization/analysis/layer_stats.py", "_SMALLEST_MAP = 4", "_SMALLEST_MAP = 5", "cam"),
    ("lowering/onnx/export.py", "OPSET = 21", "OPSET = 22", "apm"),
    ("measuring/saturation.py", "TOLERANCE = 0.02", "TOLERANCE = 0.03", "pm"),
    ("backends/onnxruntime/backend.py", "TIMED_RUNS = 9", "TIMED_RUNS = 8", "m"),
    ("measuring/accuracy.py", "_EXPLAINED_SIZE_RATIO = 0.35", "_EXPLAINED_SIZE_RATIO = 0.4", "m"),
    ("measuring/latency.py", "_QUICK_RUNS = 9", "_QUICK_RUNS = 8", "m"),
    ("measuring/timing.py", "PAUSE_S = 1.0", "PAUSE_S = 0.5", "m"),
    ("measuring/resident.py", "VmHWM", "VmPeak", "m"),
    ("measuring/causes.py", "WORTH_TELLING = 0.05", "WORTH_TELLING = 0.06", "m"),
    # Of what no stage of the cell uses:
    ("methods/ptq.py", "supports_half: ClassVar[bool] = True", "supports_half: ClassVar[bool] = False", ""),
    ("methods/gptq.py", "import", "import math, ", ""),
    ("quantization/rounding/gptq.py", "def ", "def _", ""),
    ("backends/openvino/deploy.py", "KEPT = 4", "KEPT = 5", ""),
    # What is said:
    ("errors.py", "is not installed; run", "is missing; run", ""),
    ("errors.py", "the artifact takes float32", "it takes float32", ""),
    ("errors.py", "cannot be loaded; delete its folder", "is damaged; delete its folder", ""),
    ("runtime/progress.py", "TimeRemainingColumn()", "", ""),
    ("training/loop.py", "there are {len(splits.train)} training images", "too few images", ""),
    ("training/loop.py", "\n\n\n", "\n\n\n# A comment\n\n\n", ""),
]
#: Edits of what only pictures, records and facts are made by.
DRAWING = [
    ("plots/figures.py", "_DPI = 100", "_DPI = 90"),
    ("plots/classification.py", "_EXAMPLES = 8", "_EXAMPLES = 7"),
    ("deploy/facts.py", '("numpy", "pillow")', '("numpy",)'),
]
#: What never reaches the result of a stage; "print()" is added to each of these files.
OUTSIDE = (
    "plots", "report", "tracking", "deploy", "comparison", "cli.py", "api.py", "ui.py", "hydra_app.py", "configured.py",
    "sweep.py",
    "several_values.py", "job.py", "options.py", "launching.py", "final_race.py", "cleaning.py", "planning.py",
    "pipeline.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stages whose keys change with each edit of a copy of this package, and nothing of it is run."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(SOURCE, copy, dirs_exist_ok=True)
    roots = os.pathsep.join([str(copy), str(SOURCE.parent)])
    ran = subprocess.run(
        [sys.executable, "-c", "from tests.test_stages import edit; edit()", copy],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": roots},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, str] = json.loads(ran.stdout)
    return answer


def edit() -> None:
    """Edit the package in a folder, one thing at a time, and print which keys changed."""
    package = Path(sys.argv[1]) / "bitsweep"
    assert Path(stages.__file__).parent == package
    before, answer = keys(cell()), {}
    for number, (name, old, new, _) in enumerate(EDITS):
        text = (package / name).read_text()
        assert old in text, (name, old)
        (package / name).write_text(text.replace(old, new))
        answer[str(number)] = changed(before, keys(cell()))
        (package / name).write_text(text)
    drawn = stages.EVIDENCE.key_of(cell())
    for name, old, new in DRAWING:
        text = (package / name).read_text()
        assert old in text, (name, old)
        (package / name).write_text(text.replace(old, new))
        answer[name] = changed(before, keys(cell())) + "e" * (stages.EVIDENCE.key_of(cell()) != drawn)
        (package / name).write_text(text)
    for part in OUTSIDE:
        for file in [package / part] if part.endswith(".py") else (package / part).rglob("*.py"):
            file.write_text(file.read_text() + "\n\nprint()\n")
    answer["outside"] = changed(before, keys(cell()))
    print(json.dumps(answer))


@pytest.mark.parametrize("number", range(len(EDITS)), ids=[f"{name}: {new}" for name, _, new, _ in EDITS])
def test_code_changes_the_keys_of_the_stages_that_run_it(found: dict[str, str], number: int) -> None:
    assert found[str(number)] == EDITS[number][3]


@pytest.mark.parametrize("name", [name for name, _, _ in DRAWING])
def test_how_pictures_are_drawn_changes_the_key_of_evidence_alone(found: dict[str, str], name: str) -> None:
    assert found[name] == "e"


def test_reports_tracking_and_the_command_change_no_key(found: dict[str, str]) -> None:
    assert found["outside"] == ""
