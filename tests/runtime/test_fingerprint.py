"""What changes the hash of some code, and what does not: one thing at a time."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from bitsweep.errors import ConfigError
from bitsweep.runtime import fingerprint
from tests.runtime.user_files import FILES


def _key() -> str:
    user_code = importlib.import_module("user_code")
    return fingerprint.code(user_code.work, user_code.Handed)


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_digest_is_stable_and_full_length() -> None:
    assert fingerprint.digest("a", {"x": 1, "y": 2}) == fingerprint.digest("a", {"y": 2, "x": 1})
    assert len(fingerprint.digest("a")) == 64
    assert fingerprint.digest("a", "b") != fingerprint.digest("ab")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("user_code.py", "LIMIT = 3", "LIMIT = 4"),
        ("user_code.py", "given.asked() <", "given.asked() <="),
        ("user_code.py", "return self.size", "return self.size + 1"),
        ("user_code.py", "size = 1", "size = 2"),
        ("user_code.py", "class Handed(Base)", "class Handed(Base, object)"),
        ("user_helpers/bases.py", "def asked(self):\n        return 0", "def asked(self):\n        return 1"),
        ("user_helpers/bases.py", '"one"', '"two"'),
        ("user_helpers/near.py", "x * TWO", "TWO * x"),
        (
            "user_helpers/near.py",
            '@decorator("by name")\ndef registered():\n    return 1',
            "def registered(): return 1",
        ),
        ("user_helpers/constants.py", "TWO = 2", "TWO = 3"),
        ("user_helpers/offered.py", "return 0", "return 1"),
        ("user_helpers/late.py", "return distant.far(x)", "return distant.far(x) + 1"),
        ("user_helpers/far.py", "return 7", "return 9"),
        ("user_helpers/far.py", "not_installed = None", "not_installed = 0"),
        ("registering.py", "register(1)", "register(2)"),
        ("some_registry.py", "known = []", "known = [0]"),
    ],
)
def test_code_changes_with_what_is_used_however_far_away(user: Path, file: str, old: str, new: str) -> None:
    before = _key()
    _edit(user / file, old, new)
    assert _key() != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("user_code.py", "LIMIT = 3", "# A comment\nLIMIT   = (3)"),
        ("user_code.py", '"""Do it."""', '"""Do something else."""'),
        ("user_code.py", "is too small", "is much too small"),
        ("user_code.py", "OTHER = 4", "OTHER = 5"),
        ("user_code.py", '"a message"', '"another message"'),
        ("user_code.py", "    a = 1", "    a = 2"),
        ("user_code.py", "print(work(Handed()))", "print(1)"),
        (
            "user_helpers/bases.py",
            "def never_asked(self):\n        return 0",
            "def never_asked(self):\n        return 1",
        ),
        ("user_helpers/far.py", "return 8", "return 9"),
        ("user_helpers/near.py", "def _plain():\n    return 1", "def _plain():\n    return 2"),
        ("user_helpers/constants.py", "THREE = 3", "THREE = 4"),
        ("user_helpers/only_types.py", "int", "float"),
        ("some_library/__init__.py", "return x", "return x + 0"),
    ],
)
def test_code_does_not_change_with_anything_else(user: Path, file: str, old: str, new: str) -> None:
    before = _key()
    _edit(user / file, old, new)
    assert _key() == before


def test_an_edit_counts_for_the_next_plan_and_not_for_half_of_one(user: Path) -> None:
    with fingerprint.files_seen_once():
        before = _key()
        _edit(user / "user_helpers/constants.py", "TWO = 2", "TWO = 3")
        assert _key() == before
    with fingerprint.files_seen_once():
        assert _key() != before


def test_a_library_counts_by_its_version(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [_key()]
    for version in ("1.0", "1.1"):
        other = tmp_path / f"with_{version}"
        shutil.copytree(user / "some_library", other / "some_library")
        shutil.copytree(user / "some_library-1.0.dist-info", other / "some_library.dist-info")
        _edit(other / "some_library.dist-info" / "METADATA", "Version: 1.0", f"Version: {version}")
        monkeypatch.syspath_prepend(other)
        del sys.modules["some_library"]
        importlib.import_module("some_library")
        keys.append(_key())
    assert keys[0] == keys[1] != keys[2]


def test_a_package_in_editable_form_counts_by_its_source(user: Path) -> None:
    """What is installed tells its version, and where it is edited; the files lie there."""
    (user / "installed").mkdir()
    (user / "some_library-1.0.dist-info").rename(user / "installed" / "some_library-1.0.dist-info")
    before = _key()
    _edit(user / "some_library/__init__.py", "return x", "return x + 0")
    assert _key() != before


def test_a_package_that_appears_counts(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _key()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "not_installed.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "more")
    assert _key() != before


def test_all_of_a_class_counts_that_a_library_may_call(user: Path) -> None:
    _edit(
        user / "user_helpers/bases.py", "class Base:", "import some_library\n\n\nclass Base(some_library.Interpreter):"
    )
    (user / "some_library/__init__.py").write_text(FILES["some_library/__init__.py"] + "\n\nclass Interpreter: ...\n")
    before = _key()
    _edit(user / "user_helpers/bases.py", "def never_asked(self):\n        return 0", "def never_asked(self): return 1")
    assert _key() != before


def test_a_class_that_was_typed_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_prompt", ModuleType("a_prompt"))
    typed = type("Mine", (), {"__module__": "a_prompt"})
    with pytest.raises(ConfigError, match=r"^_target_=a_prompt\.Mine: it is in no file.*write _target_=mine\.Mine$"):
        fingerprint.code(_edit, typed)


def test_a_class_of_the_program_that_is_run_counts(user: Path) -> None:
    """The program's own doings do not."""
    program = user / "program.py"
    lines = [
        "from bitsweep.runtime import fingerprint",
        "class Mine:",
        "    def __call__(self): return 1",
        "def work(): ...",
    ]
    keys = []
    for step, one in (("1", "1"), ("2", "1"), ("1", "2")):
        start = f"if __name__ == '__main__': print(fingerprint.code(work, Mine), {step})"
        program.write_text("\n".join([*lines, start]).replace("return 1", f"return {one}"))
        ran = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
        keys.append(ran.stdout.split()[0])
    assert keys[0] == keys[1] != keys[2]


#: Files, a text in one of them and another in its place; ``odd.work`` uses it in ways that names alone do not tell.
ODD = [
    ({"odd.py": "import ops\ndef work(): return getattr(ops, 'a' + 'b')", "ops.py": "ab = 1"}, "ab = 1", "ab = 2"),
    ({"odd.py": "def work():\n    from lazy import made", "lazy.py": "def __getattr__(name): return 1"}, "1", "2"),
    ({"odd.py": "from space.deep import x\ndef work(): return x", "space/deep.py": "x = 1"}, "x = 1", "x = 2"),
    ({"odd.py": "import native\ndef work(): return native.x", "native.py": "not Python 1"}, "1", "2"),
    ({"odd.py": "X = []\nX.append(1)\ndef work(): return X"}, "append(1)", "append(2)"),
    ({"odd.py": "x = 1\nif x:\n    y = 1\ndef work(): return y"}, "y = 1", "y = 2"),
    ({"odd.py": "def outer(f): return f\n@outer\ndef work(): return 1"}, "return f", "return f or 1"),
    ({"odd.py": "class A:\n    def f(self): return 1\ndef work(): return A().f()"}, "return 1", "return 2"),
    ({"odd.py": "class A:\n    f = 1\nclass B(A): ...\ndef work(): return B.f"}, "f = 1", "f = 2"),
    ({"odd.py": "def work(x=1): return x"}, "x=1", "x=2"),
    ({"odd.py": "def outer():\n    def work(): return 1\n    return work\nwork = outer()"}, "return 1", "return 2"),
    (
        {"odd.py": "class Stop(Exception):\n    x = 1\ndef work():\n    try: ...\n    except Stop as s: s.x"},
        "x = 1",
        "x = 2",
    ),
]


def _work() -> FunctionType:
    """The function of that name in ``odd.py``, which is not imported."""
    work = FunctionType((lambda: None).__code__, {"__name__": "odd"})
    work.__qualname__ = "work"
    return work


@pytest.mark.parametrize(("files", "old", "new"), ODD)
def test_code_changes_with_what_is_used_in_other_ways(
    files: dict[str, str], old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    keys = {fingerprint.code(_work())}
    for file in (tmp_path / name for name in files):
        file.write_text(file.read_text().replace(old, new))
    keys.add(fingerprint.code(_work()))
    assert len(keys) == 2


def test_circles_of_imports_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.py").write_text("from circle import work as back\ndef work(): return back()")
    (tmp_path / "circle.py").write_text("from odd import *\nfrom odd import work")
    monkeypatch.syspath_prepend(tmp_path)
    assert fingerprint.code(_work())
