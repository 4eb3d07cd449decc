import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import bitsweep as bs
from bitsweep import cell as cell_module
from bitsweep.cell import Cell, bind
from bitsweep.config import backend as backend_module
from bitsweep.errors import ConfigError
from bitsweep.planning import names_of, plan
from bitsweep.runtime import gpu as gpu_module
from bitsweep.runtime.environment import Cpu, Gpu, current_cpu
from bitsweep.runtime.store import Store
from bitsweep.stages import BASELINE, COMPRESSED, key_of
from bitsweep.targets.ssh import SshMachine

CONF = Path(__file__).parents[1] / "conf"
DEFAULTS = {
    "model": "resnet18", "method": "ptq", "precision": "int8", "backend": "onnxruntime", "dataset": "digits",
    "train": "default", "protocol": "default", "target": "local", "require": "none",
}  # fmt: skip


def composed(**choices: Any) -> dict[str, Any]:
    """Configuration as Hydra composes it; ``group__knob=value`` overrides a knob."""
    names = DEFAULTS | {name: value for name, value in choices.items() if name in DEFAULTS}
    config: dict[str, Any] = {"seed": choices.pop("seed", 0)}
    for group, choice in names.items():
        shared = OmegaConf.load(CONF / "pixels.yaml") if group == "model" else {}
        knobs = OmegaConf.merge(shared, OmegaConf.load(CONF / group / f"{choice}.yaml"))
        knobs.pop("defaults", None)
        config[group] = OmegaConf.to_container(knobs)
    for name, value in choices.items():
        if "__" in name:
            group, knob = name.split("__")
            config[group][knob] = value
    return config


def cell(**choices: Any) -> Cell:
    return bind(composed(**choices))


def test_fp32_cells_of_a_model_and_backend_are_one() -> None:
    assert cell(precision="fp32", method="ptq") == cell(precision="fp32", method="none")
    assert cell(precision="fp32").twin == cell(precision="fp32")
    assert cell(precision="int8").twin == cell(precision="fp32")


def test_a_method_that_compresses_floats_has_fp32_cells_of_its_own() -> None:
    factorized = cell(precision="fp32", method="factorize")
    assert factorized.method.name == "factorize"
    assert factorized != cell(precision="fp32")
    assert factorized.twin == cell(precision="fp32")
    assert factorized.twin.twin == factorized.twin


def test_the_scheme_follows_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(*flags: str) -> Cell:
        cpu = Cpu(model="some", architecture="x86_64", flags=frozenset(flags))
        monkeypatch.setattr("bitsweep.targets.local.current_cpu", lambda: cpu)
        bound = cell()
        assert bound.scheme
        return bound

    saturating, exact = on("avx2"), on("avx2", "avx512_vnni")
    assert saturating.scheme.weights.bits == 7  # type: ignore[union-attr]
    assert "7 bits" in saturating.scheme.why
    assert exact.scheme.weights.bits == 8  # type: ignore[union-attr]
    assert exact.scheme.why == ""
    assert key_of(saturating) != key_of(exact)


def test_half_precision_is_what_the_cpu_that_measures_computes() -> None:
    def measured_on(*flags: str) -> Cell:
        there = SshMachine(
            name="there", host="user@board", cpu_model="any", architecture="x86_64", flags=flags, physical_cores=2
        )
        return replace(cell(precision="bf16", backend="openvino"), target=there)

    computed, stored = measured_on("avx2", "avx512_bf16"), measured_on("avx2")
    assert (computed.scheme.arithmetic, computed.scheme.why) == ("bfloat16", "")
    assert stored.scheme.arithmetic == "float32"
    assert "OpenVINO on this CPU (avx2) has no bfloat16 arithmetic: weights are stored" in stored.scheme.why
    assert COMPRESSED.key_of(computed) != COMPRESSED.key_of(stored)


def test_float_islands_change_integer_cells_and_not_their_twins() -> None:
    chosen = {"backend": "openvino", "backend__float_islands": "bf16"}
    plain, own = cell(backend="openvino"), cell(**chosen)
    assert key_of(own) != key_of(plain)
    assert COMPRESSED.key_of(own) == COMPRESSED.key_of(plain)
    assert own.twin == plain.twin == cell(precision="fp32", **chosen)
    knobs = (("backend.float_islands", "bf16"), ("backend.name", "openvino"))
    bound = bind(composed(precision="fp32", **chosen), knobs=knobs)
    assert bound.knobs == knobs[1:]
    reason = cell(precision="bf16", **chosen).skip_reason()
    assert reason is not None
    assert "use backend.float_islands=fp32, and precision=bf16" in reason


def test_a_device_is_part_of_the_cell_and_of_its_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(model="NVIDIA L4", architecture="sm89")
    for module in (backend_module, cell_module):
        monkeypatch.setattr(module, "current_gpu", lambda: gpu)
    on_cpu, on_gpu = (cell(precision="fp16", backend="torch", backend__device=device) for device in ("cpu", "cuda"))
    assert key_of(on_cpu) != key_of(on_gpu)
    assert on_gpu.twin == cell(precision="fp32", backend="torch", backend__device="cuda")
    assert key_of(on_gpu.twin) != key_of(on_cpu.twin)
    assert COMPRESSED.key_of(on_gpu.twin) == COMPRESSED.key_of(on_cpu.twin)
    assert on_gpu.scheme.arithmetic == "float16"
    assert (on_gpu.device, on_gpu.twin.device, on_cpu.device) == (gpu.model, gpu.model, current_cpu().model)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"backend__device": "gpu"}, "backend.device=gpu: should be 'cpu' or 'cuda'"),
        ({"train__epochs": "many"}, "train.epochs=many: should be a valid integer"),
        ({"train__epochs": -1}, "train.epochs=-1: should be greater than or equal to 0"),
        ({"train__optimizer": "adam"}, "train.optimizer=adam: should be 'adamw' or 'sgd'"),
        ({"train__epoch": 3}, r"train.epoch: no such key; did you mean train.epochs\?"),
        ({"train__devices": 3}, r"train.devices=3: must divide batch_size=64$"),
        ({"backend__tf32": True}, r"backend.tf32=true: there is no such arithmetic on device=cpu; use device=cuda$"),
        ({"protocol__batch_sizes": []}, r"protocol\.batch_sizes=\[\]: should have at least 1 value"),
        ({"protocol__batch_sizes": [1, 0]}, "protocol.batch_sizes.1=0: should be greater"),
        (
            {"precision__weights": "float8"},
            "precision.weights=float8: .*, or should be 'float32', 'float16' or 'bfloat16'",
        ),
        ({"method___target_": "bitsweep.methods.ptq.Nothing"}, "method._target_=.*: no such class"),
        (
            {"method___target_": "bitsweep.config.recipe.Recipe"},
            "method._target_=bitsweep.config.recipe.Recipe: not a Method",
        ),
        ({"seed": -1}, "seed=-1: give a whole number"),
        ({"seed": "x"}, "seed=x: give a whole number"),
    ],
)
def test_a_bad_value_is_one_clear_line(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cell(**choices)
    assert "\n" not in str(caught.value)


def test_an_obstacle_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "backend=reference" in str(cell(precision="int16").skip_reason())
    assert "onnxruntime" in str(cell(backend="torch").skip_reason())
    assert "dataset.root" in str(cell(dataset="mnist", dataset__root="/nowhere").skip_reason())
    assert cell().skip_reason() is None
    assert re.match(
        r"protocol\.threads=999: there are \d+ CPUs; give no", str(cell(protocol__threads=999).skip_reason())
    )
    assert cell(model__output=1).skip_reason() == "model.output=1: model=resnet18 yields its logits alone; leave it out"
    assert cell(model__output=0).skip_reason() is None
    assert "set model.weights=imagenet or to a state_dict" in str(cell(train__frozen_epochs=1).skip_reason())
    assert cell(train__frozen_epochs=1, model__weights="imagenet").skip_reason() is None
    assert "there are none for resnet20" in str(cell(model="resnet20", model__weights="imagenet").skip_reason())
    monkeypatch.setattr(cell_module, "version_of", lambda package: "1")
    assert cell(backend="tensorrt").skip_reason() is None
    assert "symmetric, and method=dynamic has no such" in str(cell(backend="tensorrt", method="dynamic").skip_reason())
    monkeypatch.setattr(cell_module, "version_of", lambda package: "absent")
    assert "not installed" in str(cell().skip_reason())
    assert "timm is not installed; run: pip install 'bitsweep[timm]'" in str(cell(model="timm").skip_reason())


def test_knobs_that_were_set_are_named() -> None:
    given = bind(composed(), knobs=(("method.calibration_images", "32"),))
    assert given.choices["method.calibration_images"] == "32"
    assert given.name == "resnet18-ptq-int8-onnxruntime-digits"
    assert bind(composed(), knobs=(("backend.device", "cuda"),)).name == "resnet18-ptq-int8-onnxruntime-cuda-digits"
    assert not bind(composed(precision="fp32"), knobs=(("method.calibration_images", "32"),)).knobs


@pytest.mark.parametrize(
    ("choices", "calibrated", "reason"),
    [
        ({"train__epochs": 0}, False, None),
        ({"train__epochs": 0}, True, None),
        ({"train__epochs": 0, "method": "qat"}, False, "testing; method=qat needs training images: use another"),
        ({"train__epochs": 0, "method": "mixed"}, False, None),
        ({"train__epochs": 0, "method": "mixed"}, True, "testing; method=mixed needs validation images: use"),
        ({"train__epochs": 0, "method__study_images": 8}, True, "method=ptq needs validation images"),
        ({}, False, "testing; train=default trains: use train=pretrained and model.weights"),
    ],
)
def test_what_learns_is_skipped_where_there_is_nothing_to_learn_from(
    choices: dict[str, Any], calibrated: bool, reason: str | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", x_test=rng.integers(0, 256, (6, 8, 8), dtype=np.uint8), y_test=np.arange(6) % 2)
    np.save(tmp_path / "some.npy", rng.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    (tmp_path / "weights.pt").write_bytes(b"\x80\x02 of somebody")
    knobs = {"dataset__root": str(tmp_path / "test.npz"), "model__weights": str(tmp_path / "weights.pt")}
    knobs |= {"dataset__calibration": str(tmp_path / "some.npy")} if calibrated else {}
    found = cell(dataset="npz", model="lenet", **choices, **knobs).skip_reason()
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_gpu_is_needed_where_a_baseline_is_still_to_be_trained_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "current_gpu", lambda: None)
    store, asked = Store(tmp_path), cell(train__device="cuda")
    (planned,) = plan([asked, cell(train__device="cuda")], store, None)
    assert planned.verdict == "skip"
    assert planned.reason == "train.device=cuda: there is no NVIDIA GPU here; use train.device=auto or cpu"
    with store.building(BASELINE.name, BASELINE.key_of(asked), about={}):
        pass
    assert [each.verdict for each in plan([asked], store, None)] == ["run"]


@pytest.mark.parametrize("group", ["train", "method"])
def test_a_cell_with_an_unknown_augmentation_is_skipped(group: str) -> None:
    choices = {"method": "qat", f"{group}__augment": ["RandomHorizontalFlip", {"RandomErasing": {"prob": 0.5}}]}
    reason = cell(**choices).skip_reason()
    assert reason == f"{group}.augment.RandomErasing.prob: no such argument; it takes p, scale, ratio, value, inplace"


def test_numbers_are_names_where_names_are_asked_for() -> None:
    assert cell(dataset="image_folder", dataset__classes=[0, 180]).setting("dataset.classes") == "['0','180']"
    assert cell(model="own", model__output=1).model.output == 1


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"dataset": "image_folder", "dataset__classes": {"a": 1}},
            "dataset.classes={'a': 1}: should be a valid string",
        ),
        ({"model__pixel_range": 255}, r"model.pixel_range=255: should be a list, as in \[A,B\]$"),
        ({"model__mean": "x"}, "model.mean.0=x: should be a valid number$"),
        ({"model__mean": ["x"]}, "model.mean.0=x: should be a valid number$"),
        ({"model": "own", "model__output": [1]}, r"model.output=\[1\]: should be a valid string, or "),
        (
            {"model": "own", "model__arguments": [1]},
            "model.arguments=.*: should be names with values, as in {name: VALUE}",
        ),
        (
            {"precision__weights": {"bitz": 3}},
            r"precision.weights.bitz: no such key; did you mean precision.weights.bits\?",
        ),
    ],
)
def test_bad_values_are_told_in_the_words_of_a_command_line(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cell(**knobs)


def test_names_show_in_what_cells_and_their_baselines_differ() -> None:
    words = ["model=own dataset=digits precision=int8,fp32", "model.factory=nets.py:small,nets.py:large"]
    cells = bs.grid(" ".join(words))
    assert names_of(cells) == [
        f"own-{rest} model.factory=nets.py:{net}"
        for rest in ("ptq-int8-onnxruntime-digits", "none-fp32-onnxruntime-digits")
        for net in ("small", "large")
    ]
    baselines = [f"baseline own on digits model.factory=nets.py:{net}" for net in ("small", "large")]
    assert names_of(cells, "baseline") == baselines * 2
    assert names_of(cells[:1]) == [cells[0].name]


@pytest.mark.parametrize(
    ("choices", "knob", "one"),
    [
        ({"model__mean": 0, "model__std": 0.5}, "model.std", 0.5),
        ({"protocol__batch_sizes": 8}, "protocol.batch_sizes", 8),
        ({"model": "lenet", "model__hidden": 64}, "model.hidden", 64),
        ({"model": "lenet", "model__filters": 6}, "model.filters", 6),
        ({"method": "mixed", "method__bits": 4}, "method.bits", 4),
        ({"method": "factorize", "method__keep": "fc"}, "method.keep", "fc"),
        ({"dataset": "table", "dataset__drop": "id"}, "dataset.drop", "id"),
    ],
)
def test_one_value_alone_is_a_list_of_one(choices: dict[str, Any], knob: str, one: Any) -> None:
    group, name = knob.split(".")
    assert getattr(getattr(cell(**choices), group), name) == (one,)


def test_what_a_data_set_refuses_is_found_once_for_all_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files were read, and its messages printed, once for every cell."""
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(2):
                colour = (number, 0, 0) if part == "train" or name == "a" else (number, 9, ord(name))
                Image.new("RGB", (4, 4), colour).save(tmp_path / part / name / f"{number}.png")
    data = {"dataset": "image_folder", "dataset__root": str(tmp_path)}
    cells = [cell(**data, precision=precision) for precision in ("fp32", "int8", "int4")]
    reasons = {each.skip_reason() for each in cells}
    assert len(reasons) == 1
    assert "test images are training images too" in str(reasons.pop())
    assert capsys.readouterr().out.count("are there twice") == 1
