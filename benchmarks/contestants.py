"""What takes part in a comparison on a CPU: engines of this project; `peers.py` has what one would pick instead.

All start from one network and one set of calibration images.
"""

import contextlib
import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep.config.backend import InferenceFn
from bitsweep.config.precision import Precision
from bitsweep.data.preprocessing import preprocess
from bitsweep.results import Array, Shape, Splits
from bitsweep.runtime.allocation import keep_freed_memory
from bitsweep.runtime.environment import current_cpu, version_of

if TYPE_CHECKING:
    import torch

CONF = Path(__file__).parents[1] / "conf"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every contestant is given.

    Attributes:
        network: in float32 and evaluation mode; each has its own copy.
        splits: the training images are for calibration, all of them.
        input_shape: channels, height and width of the images that the network sees.
        batch: images that are run at a time where the number is fixed when the model is built.
        folder: empty, for files.
    """

    network: "torch.nn.Module"
    splits: Splits
    input_shape: Shape
    batch: int
    threads: int
    folder: Path

    @cached_property
    def images(self) -> Array:
        """The calibration images as the network sees them, float32 [N, 3, H, W]."""
        return preprocess(
            self.splits.train.images, input_shape=self.input_shape, mean_C=self.splits.mean_C, std_C=self.splits.std_C
        ).numpy()


#: Builds what a contestant runs.
Build = Callable[[Task], InferenceFn]


class LeftOut(Exception):
    """Why a contestant does not take part."""


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own; a sentence if that ends without an answer."""
    context = multiprocessing.get_context("spawn")
    lane, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    answer = first_answer(lane, process)
    process.join()
    return answer


def first_answer(lane: Connection, process: BaseProcess) -> Any:
    """What a process sends first; a sentence if it ends before."""
    try:
        return lane.recv()
    except EOFError:
        process.join()
        return f"its process ended with code {process.exitcode}"


def _answer(lane: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    lane.send(function(*arguments))


def built(build: Build, task: Task) -> InferenceFn | str:
    """What a contestant runs, or in one line why it does not take part; what it prints meanwhile is dropped."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(task.threads)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            infer = build(task)
            infer(task.images[: task.batch])
    except LeftOut as reason:
        return str(reason)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return infer


def ours() -> "dict[str, Build]":
    """Every engine of this project that is more than a simulation, in fp32, bf16 and int8."""
    engines = [file.stem for file in sorted((CONF / "backend").glob("*.yaml")) if file.stem != "reference"]
    return {
        f"bitsweep {engine} {precision}": Ours(engine, precision)
        for engine in engines
        for precision in ("fp32", "bf16", "int8")
    }


class Ours:
    """An engine of this project with ``method=ptq`` (none for fp32) and default settings."""

    def __init__(self, backend: str, precision: str) -> None:
        self.backend, self.precision = backend, precision

    def __call__(self, task: Task) -> InferenceFn:
        backend, precision = configured("backend", self.backend), configured("precision", self.precision)
        assert isinstance(precision, Precision)
        if version_of(backend.package) == "absent":
            raise LeftOut(f"{backend.package} is not installed")
        if reason := backend.unsupported(precision):
            raise LeftOut(reason)
        scheme = backend.scheme(precision, current_cpu())
        if precision.weights == "bfloat16" and scheme.arithmetic != "bfloat16":
            raise LeftOut(scheme.why)
        if scheme.weights == "float32":
            method = configured("method", "none")
        else:
            method = configured("method", "ptq", calibration_images=len(task.splits.train))
        keep_freed_memory()  # as the stage that compresses does
        network = task.network if scheme.weights == "float32" else exported(task)
        compression = method.compress(network, task.splits, input_shape=task.input_shape, scheme=scheme, seed=0)
        backend.lower(compression.program, task.folder)
        infer: InferenceFn = backend.load(task.folder, threads=task.threads)
        return infer


def exported(task: Task) -> "torch.nn.Module":
    """The network as a cell finds it that is compressed: in the file of its fp32 twin."""
    from bitsweep.graphs import program, tracing

    file, normalized = program_file(task)
    return tracing.Exported(program.load_program(file), normalized=normalized)


def program_file(task: Task) -> tuple[Path, tuple[str, ...]]:
    """The file of the fp32 twin, and which weights a normalisation was folded into: made once for all its cells."""
    from bitsweep.graphs import program

    precision, file = configured("precision", "fp32"), task.folder / "program.pt2"
    scheme = configured("backend", "reference").scheme(precision, current_cpu())
    twin = configured("method", "none").compress(
        task.network, task.splits, input_shape=task.input_shape, scheme=scheme, seed=0
    )
    program.save_program(twin.program, file)
    return file, twin.normalized


def configured(group: str, choice: str, **knobs: Any) -> Any:
    """A plug-in with the settings of its YAML file, but for the knobs that are given."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.load(CONF / group / f"{choice}.yaml"), _convert_="all", **knobs)
