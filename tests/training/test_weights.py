"""Checkpoints as people have them, against the weights that went into them."""

import argparse
import collections
import datetime
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitsweep.errors import ConfigError
from bitsweep.training.network import load_weights

State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(
        collections.OrderedDict(
            conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), flat=nn.Flatten(), head=nn.Linear(4, 2)
        )
    )


class Settings(dict[str, Any]):
    """What a framework of somebody's keeps beside the weights."""


class Log(list[Any]):
    """The same as a list."""


def touch(file: Path) -> None:
    file.touch()


class Ran:
    """An object that would leave a file behind if it were unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return touch, (self._file,)


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("true",)


def named(state: State, how: Callable[[str], str]) -> State:
    return {how(name): value for name, value in state.items()}


OTHER = network().state_dict()

FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "module.": lambda state: named(state, "module.{}".format),
    "_orig_mod.": lambda state: named(state, "_orig_mod.{}".format),
    "module._orig_mod.": lambda state: named(state, "module._orig_mod.{}".format),
    "model.": lambda state: named(state, "model.{}".format),
    "net._orig_mod.": lambda state: named(state, "net._orig_mod.{}".format),
    "inside": lambda state: named(state, lambda name: name.replace("conv.", "conv._orig_mod.")),
    "parallel inside": lambda state: named(state, lambda name: name.replace("head.", "head.module.")),
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {}}}},
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state, "loss": torch.tensor(0.3)},
    "net": lambda state: {"net": state},
    "a dictionary of its own": lambda state: {"weights": Settings(state)},
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}}},
    "ema beside": lambda state: {"state_dict": state, "state_dict_ema": OTHER},
    "ema before": lambda state: {"model_ema": OTHER, "model": state},
    "ema alone": lambda state: {"ema": state, "step": 7},
    "averaged": lambda state: {"n_averaged": torch.tensor(5), **named(state, "module.{}".format)},
    "arguments": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1, out=Path("/x"))},
    "odds and ends": lambda state: {
        "state_dict": state, "when": datetime.datetime.now(), "best": np.float64(0.7), "settings": Settings(a=1),
        "log": Log([1, 2]),
        "path": Path("/x"),
    },
    "Lightning": lambda state: {
        "state_dict": {**named(state, "model.{}".format), "loss.weight": torch.ones(2)}, "epoch": 1,
        "pytorch-lightning_version": "2.5", "hyper_parameters": Settings(lr=0.1), "callbacks": {"best": {"score": 0.5}},
    },
    "Lightning with averages": lambda state: {
        "state_dict": {**named(OTHER, "ema_model.module.{}".format), **named(state, "model.{}".format)},
    },
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
}  # fmt: skip


def loads(file: Path, expected: State, *, atol: float = 0) -> None:
    fresh = network()
    load_weights(fresh, file)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=atol)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_it(form: str, legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = network().state_dict()
    torch.save(FORMS[form](state), tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    loads(tmp_path / "w.pt", state, atol=1e-3 if form == "half" else 0)
    said = capsys.readouterr().out
    assert bool(said) == (form not in ("plain", "half"))
    if form == "ema beside":
        assert "takes state_dict" in said
        assert "state_dict_ema would fit as well, and is left out: to take it, save it alone" in said
    if form.startswith("Lightning"):
        assert "takes state_dict, without the prefix model." in said
        assert "left out: " in said


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = network().state_dict()
    for name in ("w.safetensors", "w.bin"):
        safetensors.save_file(state, tmp_path / name)
        loads(tmp_path / name, state)
    whole = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"w\.safetensors: is damaged or cut off"):
        load_weights(network(), tmp_path / "w.safetensors")


def test_safetensors_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(
        ConfigError, match="safetensors, which reads it, is not installed; run: pip install safetensors"
    ):
        load_weights(network(), tmp_path / "w.safetensors")


def test_nothing_in_it_is_run(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"state_dict": state, "extra": Ran(tmp_path / "ran")}, tmp_path / "w.pt")
    loads(tmp_path / "w.pt", state)
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": state, "extra": Runs()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"asks for posix\.system, which runs commands: do not use this file"):
        load_weights(network(), tmp_path / "w.pt")


def _cut(file: Path) -> None:
    torch.save(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-900])


def _cut_in_the_old_format(file: Path) -> None:
    torch.save(network().state_dict(), file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:300])


def _with_one_bit_flipped(file: Path) -> None:
    state = network().state_dict()
    torch.save(state, file)
    content = bytearray(file.read_bytes())
    content[content.index(state["conv.weight"].numpy().tobytes()) + 50] ^= 4
    file.write_bytes(content)


def _not_finite(what: float) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        state = network().state_dict()
        state["conv.weight"][0, 0] = what
        torch.save(state, file)

    return write


def _of_kind(kind: torch.dtype) -> Callable[[Path], object]:
    """The weights of a network in numbers of another kind."""
    return lambda file: torch.save(network().state_dict() | {"conv.weight": OTHER["conv.weight"].to(kind)}, file)


def _statistics(which: str, what: float) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        state = network().state_dict()
        state[f"norm.running_{which}"][1] = what
        torch.save(state, file)

    return write


def _program(file: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), file)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda file: file.write_bytes(b""), "is empty; get it again"),
        (lambda file: zipfile.ZipFile(file, "w").writestr("w.npy", "hello"), "is an archive, and none of torch.save"),
        (lambda file: file.write_bytes(b"\xff\0\0\0\0\0\0\0{}"), r"is damaged or cut off \(its head is not whole\)"),
        (lambda file: file.write_text("hello"), "not a file of torch.save or safetensors; give a state_dict"),
        (_cut, "is damaged or cut off"),
        (_cut_in_the_old_format, "is damaged or cut off"),
        (_with_one_bit_flipped, r"is damaged \(w/data/0 is not what was written\); get it again"),
        (_not_finite(float("nan")), r"conv.weight holds NaN \(9 of 108 values\): the training failed; take an earlier"),
        (_not_finite(float("inf")), r"conv.weight holds infinities \(9 of 108 values\)"),
        (_of_kind(torch.complex64), r"conv.weight holds numbers of the kind complex64; give plain float weights"),
        (_of_kind(torch.int8), r"conv.weight holds numbers of the kind int8; give plain float weights"),
        (_statistics("var", -0.25), r"norm.running_var holds -0.25, which is no variance \(1 of 4 values\)"),
        (_statistics("var", float("inf")), "norm.running_var holds inf, which is no variance"),
        (_statistics("mean", float("inf")), "norm.running_mean holds infinities"),
        (_program, "is a program .* not a state_dict; save one"),
        (lambda file: torch.save(network(), file), r"is a whole module or object \(Sequential\).*; save"),
        (lambda file: torch.save({"model": network()}, file), r"holds no state_dict \(keys: model\); save"),
        (lambda file: torch.save({"epoch": 1, "lr": 0.1}, file), r"holds no state_dict \(keys: epoch, lr\); save"),
        (
            lambda file: torch.save({name: value.to("meta") for name, value in OTHER.items()}, file),
            "is quantized, sparse, or without values",
        ),
        (lambda file: torch.save([torch.ones(2)], file), "holds no state_dict, but list; save"),
        (lambda file: torch.save(torch.ones(2), file), "holds no state_dict, but Tensor; save"),
        (
            lambda file: torch.save({"state_dict": nn.Linear(4, 2).state_dict()}, file),
            "does not fit the network: conv.weight is missing",
        ),
    ],
)  # fmt: skip
def test_what_is_no_state_is_one_plain_line(write: Callable[[Path], object], why: str, tmp_path: Path) -> None:
    write(tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=rf"^model\.weights={tmp_path}/w\.pt: .*{why}") as caught:
        load_weights(network(), tmp_path / "w.pt")
    assert str(caught.value).isprintable()
    assert "weights_only" not in str(caught.value)


def test_infinities_in_a_mask_are_none_of_the_weights(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("mask", torch.full((2, 2), float("-inf")))

    state = Masked().state_dict()
    torch.save(state, tmp_path / "w.pt")
    load_weights(Masked(), tmp_path / "w.pt")
    torch.save(state | {"mask": torch.full((2, 2), float("nan"))}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="mask holds NaN"):
        load_weights(Masked(), tmp_path / "w.pt")
