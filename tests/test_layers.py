"""What may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "bitsweep"
HEAVY = {
    "torch", "torchvision", "torchao", "onnx", "onnxruntime", "onnxscript", "openvino", "executorch", "tensorrt_rtx",
    "torch_tensorrt", "litert_torch", "ai_edge_litert", "cuda", "sklearn", "matplotlib", "mlflow", "timm",
}  # fmt: skip
PLUGINS = ("models", "datasets", "methods", "backends", "targets")
#: Folders and modules of the package from the bottom up. Each may import what stands in its own row or in one below.
LAYERS = (
    ("results", "errors", "stats", "metrics", "text"),
    ("runtime",),
    ("config", "data"),
    ("graphs", "training", "models", "datasets", "targets"),
    ("quantization",),
    ("methods", "lowering", "backends"),
    ("measuring", "plots", "deploy"),
    ("evidence",),
    ("cell", "stage_work", "probing", "naming"),
    ("stages",),
    ("cell_results",),
    ("pipeline",),
    ("tracking", "report", "expectation"),
    ("final_race", "search", "options", "ui"),
    ("planning", "comparison", "cleaning", "loaded"),
    ("launching", "submitted"),
    ("job", "sweep_record"),
    ("running",),
    ("sweep", "sweep_folder"),
    ("hydra_errors",),
    ("command_line", "several_values", "composing", "configured"),
    ("hydra_app",),
    ("direct",),
    ("cli", "api"),
)
KNOW_HYDRA = {
    "hydra_app.py", "configured.py", "command_line.py", "hydra_errors.py", "several_values.py", "composing.py",
}  # fmt: skip
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}


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


FILES = sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py")


def _own(names: set[str]) -> set[str]:
    """The parts of this package among imported names: its folders, and the modules at its top."""
    return {name.split(".")[1] for name in names if name.startswith("bitsweep.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_arrows_point_downwards(file: Path) -> None:
    part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    above = {name for name in _own(_imports(file, top_level_only=False)) if RANK[name] > RANK[part]}
    assert not above, f"{part} imports {above}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_who_knows_whom(file: Path) -> None:
    path = str(file.relative_to(SOURCE))
    anywhere = _imports(file, top_level_only=False)
    if path not in KNOW_HYDRA:
        assert not _tops(anywhere) & {"hydra", "omegaconf"}
    if not path.startswith("tracking/"):
        assert "mlflow" not in _tops(anywhere)
    if path in ("errors.py", "stats.py", "results.py") or path.startswith(("runtime/environment", "config/")):
        assert "torch" not in _tops(anywhere)


def _plugin_files(group: str) -> list[Path]:
    """Where the plug-ins of a group are: an engine is a folder, everything else a file."""
    pattern = "*/backend.py" if group == "backends" else "*.py"
    return [file for file in (SOURCE / group).glob(pattern) if file.name != "__init__.py"]


@pytest.mark.parametrize("group", PLUGINS)
def test_plugins_are_light_and_do_not_import_siblings(group: str) -> None:
    files = _plugin_files(group)
    assert files
    for file in files:
        assert not _tops(_imports(file, top_level_only=True)) & HEAVY, file
        own = file.relative_to(SOURCE / group).parts[0].removesuffix(".py")
        parts = [name.split(".") for name in _imports(file, top_level_only=False)]
        siblings = {part[2] for part in parts if part[:2] == ["bitsweep", group] and len(part) > 2} - {own}
        assert not siblings, file


#: What reads results of child processes back.
READERS = (
    "cell_results", "data.splits", "training.trained", "quantization.compressed", "measuring.passes", "report",
    "tracking.logger", "tracking.reading",
)  # fmt: skip


def test_planning_and_reading_import_nothing_heavy() -> None:
    modules = ["bitsweep.hydra_app", "bitsweep.measuring.latency", *(f"bitsweep.{name}" for name in READERS)]
    for group in PLUGINS:
        for file in _plugin_files(group):
            modules.append(".".join(["bitsweep", *file.relative_to(SOURCE).with_suffix("").parts]))
    program = (
        f"import importlib, sys\nfor module in {modules}: importlib.import_module(module)\n"
        f"print(*({HEAVY} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == []
