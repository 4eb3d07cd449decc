"""A network in a file of the user's: found, checked while planning, and part of the keys by its code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitsweep.errors import ConfigError
from bitsweep.models.own import OwnModel

NETS = '''
"""Networks."""
from torch import nn
from blocks_of_mine import block

SCALE = 2


class Net(nn.Sequential):
    """A small network."""

    def __init__(self, width=8, num_classes=10):
        super().__init__(block(3, width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def fixed():
    return Net(num_classes=7)


def broken():
    raise RuntimeError("no such thing")


def number():
    return SCALE


def pair(num_classes):
    return Net(num_classes=num_classes), None


def scripted(num_classes):
    import torch
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes)))


def valueless(num_classes):
    import torch
    with torch.device("meta"):
        return Net(num_classes=num_classes)


def compiled(num_classes):
    import torch
    return torch.compile(nn.DataParallel(Net(num_classes=num_classes)))


def half(num_classes):
    return Net(num_classes=num_classes).half()


made = Net()
'''
BLOCKS = """
from torch import nn


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of networks with a module of its own beside it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("nets_of_mine", "blocks_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "nets_of_mine.py").write_text(NETS)
    (tmp_path / "blocks_of_mine.py").write_text(BLOCKS)
    return tmp_path / "nets_of_mine.py"


def own(factory: str, **arguments: object) -> OwnModel:
    return OwnModel(name="own", image_size=16, factory=factory, arguments=arguments)


def test_a_factory_gets_its_arguments_and_the_number_of_classes(nets: Path) -> None:
    network = own(f"{nets}:Net", width=4).build(3)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert network[0][0].out_channels == 4
    assert own(f"{nets}:fixed").build(3)(torch.zeros(2, 3, 16, 16)).shape == (2, 7)


@pytest.mark.parametrize("name", ["compiled", "half"])
def test_what_wraps_or_narrows_a_network_is_taken_off(name: str, nets: Path) -> None:
    network = own(f"{nets}:{name}").build(3)
    assert type(network).__name__ == "Net"
    assert network(torch.zeros(2, 3, 16, 16)).dtype == torch.float32


def test_a_module_that_is_installed_is_named_by_its_path() -> None:
    network = own("torchvision.models:squeezenet1_1", num_classes=5).build(9)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("{nets}", r"write a file and a name in it, as in mine\.py:make"),
        ("{nets}:Nett", r"no such callable in nets_of_mine; it has .*Net"),
        ("{nets}:broken", "RuntimeError: no such thing"),
        ("{nets}:number", r"makes a int, no torch\.nn\.Module"),
        ("{nets}:pair", "makes a tuple of Net, NoneType, no torch.nn.Module; return a network alone"),
        ("{nets}:scripted", "makes a module of TorchScript, .*; return the network that it was made from"),
        ("{nets}:valueless", "without values"),
        ("{nets}:made", "is a network, not what makes one; write a function that returns it"),
        ("os:getcwd", "os comes with Python; name a module or file of yours"),
        ("os.path:join", "os.path comes with Python"),
        ("nowhere.py:Net", "there is no file /"),
        ("nothing_of_mine:Net", "there is no module nothing_of_mine"),
    ],
)
def test_what_is_no_factory_is_one_line(factory: str, message: str, nets: Path) -> None:
    model = own(factory.format(nets=nets))
    with pytest.raises(ConfigError, match=message):
        model.check()
        model.build(3)


CALLED = """
import functools
from torch import nn
from nets_of_mine import Net as Imported


class Small(Imported):
    pass


class Keyword(nn.Module):
    def __init__(self, *, depth, num_classes): ...


def anything(**settings): ...


@functools.cache
def decorated(depth): ...


partial = functools.partial(anything, depth=3)
"""


def test_code_that_ends_the_program_is_an_error_of_the_setting(nets: Path) -> None:
    file = nets.parent / "ends_of_mine.py"
    file.write_text("import sys\n\ndef make():\n    sys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"^model\.factory=.*ends_of_mine\.py:make: SystemExit: 3$"):
        own(f"{file}:make").build(2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Small", {"widht": 2}, r"^model\.arguments\.widht: .*:Small has no such parameter; did you mean width\?"),
        ("Small", {"width": 2}, None),
        ("Imported", {"dropout": 2}, r"no such parameter; it has width, num_classes$"),
        ("Keyword", {}, r"^model\.arguments: .*:Keyword needs depth too; give it"),
        ("Keyword", {"depth": 1}, None),
        *((name, {"depth": 1}, None) for name in ("anything", "decorated", "partial")),
    ],
)
def test_a_plan_sees_which_arguments_it_takes(
    name: str, arguments: dict[str, int], message: str | None, nets: Path
) -> None:
    (nets.parent / "called_of_mine.py").write_text(CALLED)
    made = own(f"{nets.parent / 'called_of_mine.py'}:{name}", **arguments)
    if message is None:
        made.check()
    else:
        with pytest.raises(ConfigError, match=message):
            made.check()


@pytest.mark.parametrize(
    ("source", "callable_"),
    [
        ("from nets_of_mine import *", True),
        ("from nets_of_mine import Net as Other\nNet = Other", True),
        ("try:\n    from absent import Net\nexcept ImportError:\n    Net = None\nelse:\n    class Net: ...", True),
        ("from math import *\nNet = sqrt", True),
        ("def make():\n    globals()['Net'] = dict\nmake()", True),
        ("def __getattr__(name): ...", True),
        ("from os.path import *\nfrom blocks_of_mine import *", False),
        ("from nets_of_mine import SCALE as Net", False),
        ("import nets_of_mine as Net", False),
        ("from math import pi as Net", False),
        ("Net: tuple = (1, 2)", False),
        ("# Net\ndef net(): Net = setattr", False),
        ("if __name__ == '__main__':\n    class Net: ...", False),
    ],
)  # fmt: skip
def test_a_plan_sees_whether_a_name_may_be_called(source: str, callable_: bool, nets: Path) -> None:
    (nets.parent / "others_of_mine.py").write_text(source)
    (nets.parent / "starry_of_mine.py").write_text("from others_of_mine import *\n")
    for file in ("others_of_mine.py", "starry_of_mine.py"):
        made = own(f"{nets.parent / file}:Net")
        if callable_:
            made.check()
        else:
            with pytest.raises(ConfigError, match=r"^model\.factory=.*:Net: no such callable in"):
                made.check()


def test_a_plan_sees_what_a_file_lacks_without_running_it(nets: Path) -> None:
    with pytest.raises(ConfigError, match=r"Nett: no such callable in nets_of_mine; it has Net,"):
        own(f"{nets}:Nett").check()
    nets.write_text("import sys\nsys.exit(3)\ndef (:\n")
    with pytest.raises(ConfigError, match=r"nets_of_mine\.py is no Python: line 3: invalid syntax$"):
        own(f"{nets}:Net").check()


def test_a_file_with_the_name_of_another_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "json.py").write_text(NETS)
    with pytest.raises(ConfigError, match="another module has the name json; rename the file"):
        own(f"{tmp_path / 'json.py'}:Net").check()


def test_code_of_the_user_is_in_the_keys(nets: Path) -> None:
    def source() -> str:
        return own(f"{nets}:Net").source()

    before = source()
    nets.write_text(NETS.replace('"""A small network."""', "# a comment"))
    assert source() == before
    blocks = nets.with_name("blocks_of_mine.py")
    blocks.write_text(BLOCKS.replace("ReLU", "ReLU6 "))
    changed = source()
    assert changed != before
    blocks.write_text(BLOCKS)
    nets.write_text(NETS.replace("SCALE = 2", "SCALE = 3"))
    assert source() == before
    assert own(f"{nets}:number").source() != before


@pytest.mark.slow
def test_a_network_of_ones_own_through_the_command(nets: Path, workplace: Path) -> None:
    words = ["model=own", "model.factory=nets_of_mine.py:Net", "model.arguments.width=16", "model.image_size=16",
             "precision=int8", "train=smoke", "train.max_steps=20", "protocol=smoke"]  # fmt: skip
    assert nets.parent == workplace
    done = subprocess.run(
        [sys.executable, "run.py", *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished  own-ptq-int8-onnxruntime-digits" in done.stdout
