"""A network that is at hand, compressed and made into an engine's file without a sweep.

    import bitsweep as bs

    program = bs.compress(network, images, method="gptq", precision="int8")
    logits = program(images)
    lowered = bs.lower(program, "onnxruntime", "lowered")

What comes out is what a sweep with the same settings measures. How fast and how accurate it is, a sweep says.
"""

import contextlib
import copy
import functools
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bitsweep.cell import Cell
from bitsweep.config.backend import Backend, InferenceFn
from bitsweep.config.precision import Precision, Scheme
from bitsweep.data.given_batches import collected, splits_of_batches
from bitsweep.deploy.bundle import engine_programs
from bitsweep.errors import ConfigError, DataError, MissingPackage, first_line, require_images
from bitsweep.hydra_app import cells_of
from bitsweep.results import Array, Compression, Shape
from bitsweep.runtime.environment import current_cpu, physical_cores, release_of, version_of
from bitsweep.runtime.fingerprint import settings as settings_of

if TYPE_CHECKING:
    import pandas
    import torch


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compressed network: float32 images [N, C, H, W] to float32 logits [N, K], every quantized tensor as codes.

    Attributes:
        compression: the program of ``torch.export``, and what became of each layer.
        precision: that was asked for.
        scheme: what it became for the engine.
        backend: engine that it was compressed for.
        input_shape: C, H and W.
    """

    compression: Compression = field(repr=False)
    precision: Precision
    scheme: Scheme
    backend: str
    input_shape: Shape

    @overload
    def __call__(self, images: "torch.Tensor") -> "torch.Tensor": ...
    @overload
    def __call__(self, images: Array) -> Array: ...
    def __call__(self, images: "torch.Tensor | Array") -> "torch.Tensor | Array":
        """Logits of a batch by PyTorch: what the compressed network means, whatever engine runs it.

        Raises:
            DataError: the images are not float32 [N, C, H, W].
        """
        import numpy as np
        import torch

        if isinstance(images, torch.Tensor):
            return torch.from_numpy(self._infer(np.ascontiguousarray(images.detach().cpu().numpy())))
        return self._infer(np.ascontiguousarray(images))

    @functools.cached_property
    def _infer(self) -> InferenceFn:
        from bitsweep.graphs.program import inference_fn

        return inference_fn(self.compression.program)

    @property
    def layers(self) -> "pandas.DataFrame":
        """A row a layer: formats of its weights and activations, bits, ranges, what was clipped, and why."""
        import pandas

        return pandas.DataFrame([asdict(layer) for layer in self.compression.layers])

    @property
    def tables(self) -> "dict[str, pandas.DataFrame]":
        """Tables that the method recorded, by their names, e.g. ``sensitivity``."""
        import pandas

        return {each.name: pandas.DataFrame(each.rows, columns=each.columns) for each in self.compression.tables}

    @property
    def size_mb(self) -> float:
        """What its layers need at their bits, scales included, in 10^6 bytes. Files of engines are a little larger."""
        return sum(layer.stored_bits for layer in self.compression.layers) / 8e6


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A file that an engine loads.

    Attributes:
        file: in a folder of its own, with ``engine.py``, which loads it without this project.
        how: a few lines of Python that run it without this project; empty where that cannot be.
        needs: packages that these lines need, with their versions.
    """

    file: Path
    how: str
    needs: tuple[str, ...]
    engine: Backend
    input_shape: Shape

    def __call__(self, images: Array) -> Array:
        """Logits [N, K] of images float32 [N, C, H, W], by the engine in this process, on all cores.

        Raises:
            DataError: they are other images.
        """
        import numpy as np
        import torch

        given = np.ascontiguousarray(images)
        require_images(given, self.input_shape)
        with _pytorch_kept():
            infer, kernels = self._loaded
            torch.set_num_threads(physical_cores())
            torch.backends.quantized.engine = kernels
            return infer(given)

    @functools.cached_property
    def _loaded(self) -> tuple[InferenceFn, str]:
        """What runs it, and which of PyTorch's integer kernels that needs."""
        import torch

        return self.engine.load(self.file.parent, threads=physical_cores()), torch.backends.quantized.engine

    @property
    def size_mb(self) -> float:
        """Size of the file, in 10^6 bytes."""
        return self.file.stat().st_size / 1e6


def compress(
    network: "torch.nn.Module",
    images: "torch.Tensor | Array | Iterable[Any]",
    *,
    method: str = "ptq",
    precision: str = "int8",
    backend: str = "onnxruntime",
    settings: str = "",
    seed: int = 0,
) -> Program:
    """Compress a trained network, which stays as it is.

    Args:
        network: from float32 images [N, C, H, W] to logits [N, K].
        images: to choose ranges on, as the network takes them, normalised: all in one tensor or array, or batches,
            such as a ``DataLoader``. As many are used as ``method.calibration_images`` says: of one tensor at random,
            of batches the first ones. Methods that learn need batches of (images, labels), and use all; a tenth is
            held out to validate on. ``three_sigma`` evaluates its steps on labelled images.
        method, precision: choices of a sweep, e.g. ``gptq`` and ``int4``.
        backend: engine whose kernels decide what the precision becomes.
        settings: of these choices, as on a command line: ``"method.percentile=99.9 precision.weights.bits=6"``.
        seed: of whatever is random.

    Returns:
        A program to call, with a record of each layer.

    Raises:
        ConfigError: a choice or a setting is not allowed, or they do not go together.
        DataError: the images are no batches that the network takes.
        CompressionError: the network cannot be traced.
    """
    import torch

    cell = _chosen(f"method={method}", f"precision={precision}", f"backend={backend}", *shlex.split(settings))
    if cell.method.keeps_files:
        raise ConfigError(f"method={method}: takes files as they are; choose one that compresses, such as ptq")
    if reason := cell.backend.unsupported(cell.precision) or cell.method.unsupported(cell.precision):
        raise ConfigError(reason)
    learns = cell.method.learns_from()
    images_NCHW, labels_N = collected(images, most=None if learns else getattr(cell.method, "calibration_images", 1))
    if learns and labels_N is None:
        raise ConfigError(f"method={method}: learns from labels; give batches of (images, labels), or another method")
    copied = copy.deepcopy(network).cpu().eval()
    classes = _classes(copied, torch.from_numpy(images_NCHW[:2]))
    splits = splits_of_batches(images_NCHW, labels_N, classes=classes, learns=learns is not None)
    channels, height, width = images_NCHW.shape[1:]
    shape = channels, height, width
    with torch.random.fork_rng(devices=[]):
        compression = cell.method.compress(copied, splits, input_shape=shape, scheme=cell.scheme, seed=seed)
    return Program(
        compression=compression, precision=cell.precision, scheme=cell.scheme, backend=backend, input_shape=shape
    )


def lower(program: Program, backend: str, folder: Path | str, *, settings: str = "") -> Lowered:
    """Write the file that an engine loads, and say how it is run.

    Args:
        backend: an engine, e.g. ``onnxruntime``.
        folder: a new or empty one.
        settings: of the engine, as on a command line: ``"backend.optimization=basic"``.

    Raises:
        ConfigError: there is no such engine, its kernels need another program, or the folder is not empty.
        BitsweepError: the engine does not take the program.
    """
    from bitsweep.graphs.program import load_program, save_program

    engine, given = _chosen(f"backend={backend}", *shlex.split(settings)).backend, program.compression.given
    if reason := engine.unsupported(program.precision) or engine.cannot_run():
        raise ConfigError(reason)
    if given and not engine.reads_onnx:
        raise ConfigError(f"backend={backend}: takes no ONNX files as they are: use backend=onnxruntime or openvino")
    if not given:
        _require_scheme(program, engine.scheme(program.precision, current_cpu()), backend)
    place = Path(folder).absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"folder={folder}: is not empty; name a new one")
    programs = engine_programs(engine.deploy_module, engine.deploy_with) if engine.deploy_module else {}
    try:
        place.mkdir(parents=True, exist_ok=True)
        # An engine may change the program that it is given.
        with tempfile.TemporaryDirectory() as scratch, _pytorch_kept():
            if given:
                import onnx

                onnx.save(given, file := Path(scratch) / "given.onnx")
                engine.take(file, place)
            else:
                save_program(program.compression.program, file := Path(scratch) / "program.pt2")
                engine.lower(load_program(file), place)
        for name, text in programs.items():
            (place / name).write_bytes(text)
    except OSError as error:
        raise ConfigError(f"folder={folder}: cannot be written ({error.strerror}); name another") from error
    return Lowered(
        file=place / engine.artifact,
        how=_how(engine, place) if programs else "",
        needs=tuple(f"{name}=={release_of(name)}" for name in (*engine.deploy_needs, "numpy")) if programs else (),
        engine=engine,
        input_shape=program.input_shape,
    )


@contextlib.contextmanager
def _pytorch_kept() -> Iterator[None]:
    """Leave PyTorch's threads and choice of integer kernels as the caller has set them."""
    import torch

    threads, kernels = torch.get_num_threads(), torch.backends.quantized.engine
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.quantized.engine = kernels


def _chosen(*words: str) -> Cell:
    """A cell with some choices.

    Raises:
        ConfigError: one of them is not allowed.
        MissingPackage: its engine is not installed.
    """
    cells = cells_of(words)
    if len(cells) > 1:
        raise ConfigError(f"{' '.join(words)}: {len(cells)} cells; give one value each")
    (cell,) = cells
    for choice in (cell.method, cell.backend):
        if version_of(choice.package) == "absent":
            raise MissingPackage(choice.package, choice.extra)
    return cell


def _classes(network: "torch.nn.Module", images: "torch.Tensor") -> int:
    """How many classes a network tells apart.

    Raises:
        DataError: it does not take the images, or yields no logits.
    """
    import torch

    try:
        with torch.inference_mode():
            logits = network(images)
    except Exception as error:  # whatever a network of somebody else's raises
        raise DataError(f"images: the network does not take {list(images.shape)}: {first_line(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise DataError(f"network: it yields {found} for {len(images)} images; wrap it, so that it yields [N, K]")
    return logits.shape[1]


def _require_scheme(program: Program, taken: Scheme, backend: str) -> None:
    """Refuse a program that was made for other kernels: the engine would compute something else, or in float."""
    made = program.scheme
    if (made.weights, made.activations) != (taken.weights, taken.activations):
        raise ConfigError(
            f"backend={backend}: takes {taken}, and the program has {made}, for {program.backend}: "
            f"compress with backend={backend}"
        )
    if (made.fuses_functions, made.yields_floats) != (taken.fuses_functions, taken.yields_floats):
        raise ConfigError(
            f"backend={backend}: rounds at other places between layers and functions than {program.backend}, which "
            f"the program is made for: compress with backend={backend}"
        )


def _how(engine: Backend, folder: Path) -> str:
    """Lines of Python that run what is in a folder."""
    about = {"threads": physical_cores(), "backend": settings_of(engine)}
    return f"""import sys
from pathlib import Path

folder = Path({str(folder)!r})
sys.path.insert(0, str(folder))
from engine import load

infer = load(folder, {about})
# infer(images) gives logits [N, K] for float32 images [N, C, H, W]
"""
