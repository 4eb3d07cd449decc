"""What may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "bitsweep"
HEAVY = {
    "torch", "torchvision", "torchao", "onnx", "onnxruntime", "onnxscript", "openvino", "executorch", "tensorrt_rtx",
    "torch_tensorrt", "cuda", "sklearn", "matplotlib", "mlflow", "timm",
}  # fmt: skip
PLUGINS = ("models", "datasets", "methods", "backends")


def _imports(file: Path, *, top_level_only: bool) -> set[str]:
    tree = ast.parse(file.read_text())
    names: set[str] = set()
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)) or (
            isinstance(node, ast.FunctionDef) and top_level_only
        ):
            continue
        stack += ast.iter_child_nodes(node)
    return names


def _tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_who_knows_whom(file: Path) -> None:
    path = str(file.relative_to(SOURCE))
    anywhere = _imports(file, top_level_only=False)
    if path != "sweep.py":
        assert not _tops(anywhere) & {"hydra", "omegaconf"}
    if not path.startswith("tracking/"):
        assert "mlflow" not in _tops(anywhere)
    if path in ("errors.py", "stats.py", "environment.py"):
        assert "torch" not in _tops(anywhere)


@pytest.mark.parametrize("group", PLUGINS)
def test_plugins_are_light_and_do_not_import_siblings(group: str) -> None:
    files = [file for file in (SOURCE / group).glob("*.py") if file.name != "__init__.py"]
    assert files
    for file in files:
        assert not _tops(_imports(file, top_level_only=True)) & HEAVY, file
        siblings = {f"bitsweep.{group}.{other.stem}" for other in files if other != file}
        assert not _imports(file, top_level_only=False) & siblings, file


def test_planning_imports_nothing_heavy() -> None:
    program = (
        "import sys, bitsweep.sweep, bitsweep.measuring.latency; from pathlib import Path; import importlib\n"
        f"for group in {PLUGINS}:\n"
        f"    for file in (Path({str(SOURCE)!r}) / group).glob('*.py'):\n"
        "        importlib.import_module(f'bitsweep.{group}.{file.stem}')\n"
        f"print(*({HEAVY} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == []
