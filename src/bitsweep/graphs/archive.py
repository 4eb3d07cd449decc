"""``torch.export`` files as data: read only after it was seen that nothing in them can run code.

PyTorch's own reader unpickles what it finds, evaluates the formulas of symbolic sizes, compiles guards that are written
as Python, imports the types of nested inputs, and calls any function that a graph names. Here a file may hold tensors
as plain bytes, and graphs of tensor operations, and nothing else.
"""

import copy
import io
import json
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2

_GRAPH = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORD = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
)
#: Whose operations compute tensors from tensors, and those of them that read files.
_NAMESPACES = frozenset({"aten", "prims", "quantized_decomposed", "torchao", "torchvision"})
_READS_FILES = frozenset({"from_file"})
#: What inputs and outputs may be nested in.
_NESTS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
#: What graphs compute sizes with.
_SIZES = frozenset({"getitem", "add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge"})
#: Formulas of sizes as SymPy writes them: ``Add(Symbol('s34', positive=True, integer=True), Integer(1))``.
_FUNCTIONS = (
    "Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv Eq Ne Lt Le Gt Ge And Or Not Equality Unequality"
)
_CLASSES = "Symbol Integer Float Rational StrictLessThan LessThan StrictGreaterThan GreaterThan Identity TruncToInt"
_FORMULA = re.compile(
    rf"(?:(?:{'|'.join(f'{_FUNCTIONS} {_CLASSES}'.split())})\(|'[su]?f?\d[\d.e+-]*'|[a-z_]+=(?:True|False|\d+)"
    r"|[su]\d+|[-+*/%(),<>=&|~\s]|\d+(?:\.\d+)?|true|false)*"
)


def save_archive(program: ExportedProgram, path: Path) -> None:
    """Write a program to a file, without the sample inputs that it was traced with."""
    bare = copy.copy(program)
    bare._example_inputs = None
    torch.export.save(bare, path)


def load_archive(path: Path) -> ExportedProgram:
    """Read a program from a ``torch.export`` file that holds data alone.

    Raises:
        ValueError: naming what else it holds.
        RuntimeError: it is no such file, or damaged.
    """
    with PT2ArchiveReader(str(path)) as archive:
        _require_data(archive)
    program: ExportedProgram = load_pt2(str(path)).exported_programs["model"]
    program._guards_code = []  # Python in text; what images a program takes is checked where it is run
    return program


def _require_data(archive: PT2ArchiveReader) -> None:
    names = archive.get_file_names()
    known = {_GRAPH, _SAMPLES, *_CONFIGS}
    for name in names:
        if name not in known and not _RECORD.fullmatch(name):
            raise ValueError(f"it holds {name}, which is neither a tensor nor a graph")
    for config in _CONFIGS:
        for tensor, where in json.loads(archive.read_bytes(config))["config"].items():
            if where.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", where["path_name"]):
                raise ValueError(f"{tensor} is pickled, which may run code")
    if samples := archive.read_bytes(_SAMPLES):
        try:
            torch.load(io.BytesIO(samples), weights_only=True)
        except Exception as error:
            raise ValueError(
                "its sample inputs are pickled objects, which may run code; save it with tensors"
            ) from error
    for key, value in _strings(json.loads(archive.read_bytes(_GRAPH))):
        if key == "target" and not _computes(value):
            raise ValueError(f"its graph calls {value}, which is not an operation on tensors")
        if key == "expr_str" and not _FORMULA.fullmatch(value):
            raise ValueError(f"a size in its graph is {value[:100]}, which is no formula")
        if key in ("in_spec", "out_spec"):
            nested = json.loads(value)
            if "__enum__" in value or not _NESTS.issuperset(_types(nested)):
                raise ValueError("its inputs or outputs are nested in objects; return tensors, tuples, lists or dicts")


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON document, with the key that it stands under."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _strings(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, key)
    elif isinstance(node, str):
        yield key, node


def _types(nested: Any) -> Iterator[str | None]:
    """The types that inputs or outputs are nested in."""
    if isinstance(nested, dict):
        yield nested["type"]
        nested = nested["children_spec"]
    if isinstance(nested, list):
        for child in nested:
            yield from _types(child)


def _computes(target: str) -> bool:
    """Whether the name that a graph calls is an operation on tensors or sizes."""
    module, _, name = target.rpartition(".")
    if module == "_operator":
        return name in _SIZES and hasattr(operator, name)
    if module == "torch":
        return name in ("sym_int", "sym_float", "sym_max", "sym_min")
    parts = target.split(".")
    if parts[:2] != ["torch", "ops"] or len(parts) != 5:
        return False
    namespace, operation, overload = parts[2:]
    if namespace not in _NAMESPACES or operation in _READS_FILES:
        return False
    packet = getattr(getattr(torch.ops, namespace), operation, None)
    return isinstance(packet, torch._ops.OpOverloadPacket) and overload in packet.overloads()  # type: ignore[no-untyped-call]
