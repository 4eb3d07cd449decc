"""The base classes of engines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from bitsweep.config.configurable import IN_NAMES, Choice, configurable
from bitsweep.config.precision import Precision, Scheme
from bitsweep.errors import MissingPackage
from bitsweep.runtime.environment import Cpu, Gpu, current_gpu

if TYPE_CHECKING:
    import numpy as np
    import torch

    from bitsweep.results import OpProfile


#: What an engine that has kernels for both runs on.
Device = Literal["cpu", "cuda"]


#: Runs an artifact: float32 images [N, 3, H, W] to float32 logits [N, K].
InferenceFn = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A run of a batch that lies in a GPU's memory, and whose logits stay there.

    Attributes:
        queue: lets the GPU run it; may return before it is done.
        stream: handle of the CUDA stream that it runs in.
    """

    queue: Callable[[], object]
    stream: int


@configurable
class Backend(Choice, ABC):
    """An engine. Lowers a program to a file, and runs that file.

    Attributes:
        artifact: name of the file that it loads.
        unloaded: names of files beside it that `profile` reads and no engine loads, so that they do not count as size.
        reads_onnx: whether it takes ONNX files of somebody else's as they are.
        package, extra: distribution that the engine comes in, and the extra of this project that installs it.
        timed: whether its latency means anything; False for simulations.
        portable: whether an artifact runs on other CPUs too; False for machine code.
        deploy_needs: packages that ``deploy.py`` beside the plug-in imports, which runs the artifact without this
            project; empty where there is nothing to deploy.
        deploy_with: modules of this project, of which none imports another, that ``deploy.py`` imports by their last
            name.
    """

    artifact: ClassVar[str]
    unloaded: ClassVar[tuple[str, ...]] = ()
    reads_onnx: ClassVar[bool] = False
    package: ClassVar[str] = "torch"
    extra: ClassVar[str] = ""
    timed: ClassVar[bool] = True
    portable: ClassVar[bool] = True
    deploy_needs: ClassVar[tuple[str, ...]] = ()
    deploy_with: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def unsupported(self, precision: Precision) -> str | None:
        """Why this engine cannot run a precision, with the hint; None when it can."""

    @property
    def for_floats(self) -> "Backend":
        """This engine without the knobs that change integer networks only."""
        return self

    def cannot_run(self) -> str | None:
        """Why this engine's files cannot be run on this machine, although they can be made here; None when they can."""
        return None

    @property
    def deploy_module(self) -> str:
        """Module that runs the artifact without this project; empty where there is nothing to deploy."""
        return f"{type(self).__module__.rpartition('.')[0]}.deploy" if self.deploy_needs else ""

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Where the engine is imported: tell that it is not installed, and what to do, if it is not."""
        try:
            yield
        except ImportError:
            raise MissingPackage(self.package, self.extra) from None

    @property
    def on_gpu(self) -> bool:
        """Whether its kernels are an NVIDIA GPU's."""
        return False

    @abstractmethod
    def scheme(self, precision: Precision, cpu: Cpu) -> Scheme:
        """The precision resolved against this engine's kernels and the CPU, or the GPU where it runs on that."""

    @abstractmethod
    def lower(self, program: "torch.export.ExportedProgram", folder: Path) -> None:
        """Write the artifact's files into an existing empty folder.

        Raises:
            BitsweepError: the engine does not take the program.
        """

    def take(self, file: Path, folder: Path) -> None:
        """Write the artifact's files from an ONNX file of somebody else's, whose graph stays as it is.

        Raises:
            BitsweepError: the engine does not take it.
        """
        raise AssertionError(f"{self.name} takes no ONNX files, see reads_onnx")

    @abstractmethod
    def load(self, folder: Path, *, threads: int) -> InferenceFn:
        """Load an artifact in a fresh process, to run on the given number of threads."""

    def load_on_device(self, folder: Path, images: "np.ndarray[Any, Any]", *, threads: int) -> OnDevice:
        """Load an artifact and a batch into the GPU's memory."""
        raise AssertionError(f"{self.name} runs on no GPU, see on_gpu")

    @abstractmethod
    def profile(self, folder: Path, images: "np.ndarray[Any, Any]", *, threads: int) -> "Sequence[OpProfile]":
        """What the engine executed for one batch: its kernels with their multiply-accumulates and arithmetic.

        Of an engine that cannot run here, what it would execute, according to its file.
        """


@configurable
class CpuOrGpu(Backend):
    """An engine with kernels for both.

    Attributes:
        device: ``cpu``, or ``cuda`` for the first NVIDIA GPU.
        tf32: whether float32 layers may round what they multiply to 10 bits of mantissa, which GPUs only do.
    """

    device: Annotated[Device, IN_NAMES] = "cpu"
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.tf32 and not self.on_gpu:
            raise ValueError(f"tf32=true: there is no such arithmetic on device={self.device}; use device=cuda")

    @property
    def on_gpu(self) -> bool:
        """By choice."""
        return self.device == "cuda"

    def processor(self, cpu: Cpu) -> Cpu | Gpu:
        """What it computes on; there is a GPU where `unsupported` found nothing against it."""
        if not self.on_gpu:
            return cpu
        gpu = current_gpu()
        assert gpu is not None
        return gpu
