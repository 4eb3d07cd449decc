"""Which kernels oneDNN executed, from its own log. Most CPU kernels of PyTorch and others are oneDNN's."""

import ctypes
import math
import os
import re
import tempfile
from collections.abc import Callable

import torch

from bitsweep.results import OpProfile

BYTE_TYPES = {"u8", "s8"}
#: Sizes in the description of a convolution or inner product whose product is its number of multiply-accumulates.
PRODUCT = ("mb", "oc", "od", "oh", "ow", "ic", "kd", "kh", "kw")
INNER_PRODUCT = ("mb", "oc", "ic", "id", "ih", "iw")


def executed(run: Callable[[], object]) -> tuple[OpProfile, ...]:
    """The primitives that oneDNN executes during a call, in their order.

    Whatever else the process writes to its standard output meanwhile is lost.
    """
    with tempfile.TemporaryFile("w+") as log:
        kept = os.dup(1)
        os.dup2(log.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):  # type: ignore[no-untyped-call]
                run()
            # oneDNN prints through the buffers of C, which know nothing of those of Python.
            ctypes.CDLL(None).fflush(None)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        log.seek(0)
        lines = [line for line in log if line.startswith("onednn_verbose,") and ",primitive,exec," in line]
    return tuple(parse(line, name=f"onednn_{index}") for index, line in enumerate(lines))


def parse(line: str, *, name: str) -> OpProfile:
    """A kernel from a line of oneDNN's log; its operation ends with the type of the values that it reads.

    After ``onednn_verbose,v1,primitive,exec,cpu`` it has: operation, implementation, kind of propagation, tensors with
    their types and layouts, attributes, algorithm, sizes, and milliseconds.
    """
    *_, operation, implementation, _, tensors, _, _, sizes, _ = line.strip().split(",")
    types = dict(tensor.split(":", 2)[:2] for tensor in tensors.split())
    read = types.get("src", types.get("src_0", ""))
    return OpProfile(
        name=name,
        op=f"{operation} {implementation} {read}".strip(),
        macs=_macs(operation, sizes),
        integer=read in BYTE_TYPES,
    )


def _macs(operation: str, sizes: str) -> int:
    if operation == "matmul":
        left, right = (shape.split("x") for shape in sizes.split(":")[:2])
        return math.prod(map(int, left)) * int(right[-1])
    named = {letters: int(size) for letters, size in re.findall(r"([a-z]+)(\d+)", sizes)}
    if operation == "inner_product":
        return math.prod(named.get(size, 1) for size in INNER_PRODUCT)
    if operation == "convolution":
        return math.prod(named.get(size, 1) for size in PRODUCT) // named.get("g", 1)
    if operation == "deconvolution":
        slid = ("mb", "ic", "id", "ih", "iw", "oc", "kd", "kh", "kw")
        return math.prod(named.get(size, 1) for size in slid) // named.get("g", 1)
    return 0
