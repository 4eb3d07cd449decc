"""The cells that a search chooses from, described by what they have in common."""

from dataclasses import asdict, dataclass

from bitsweep.cell import Cell
from bitsweep.config.configurable import identity
from bitsweep.config.precision import Grid
from bitsweep.quantization.quantizing import QuantizingMethod
from bitsweep.runtime.fingerprint import digest
from bitsweep.stages import BASELINE, COMPRESSED

#: Bits of the formats that are no grids.
_FLOAT_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}
#: Knobs of methods that only say how much work is done, of which a little tells much about the rest.
EFFORTS = ("calibration_images", "epochs", "max_steps", "iterations")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A cell.

    Attributes:
        choices: its own, by which a report knows it.
        network: what all cells with the same baseline and protocol share.
        program: key of what the engine gets, which all engines with the same scheme share.
        family: what programs have in common that differ in effort alone.
        effort: how much work of a method is asked for, in no unit; more takes longer.
        engine: the engine with its settings, on the machine that measures.
        formats: what programs have in common whose weights and activations have the same formats: they are equally
            large, but for what a method keeps in float.
        kernels: the same of cells on one engine, which runs them by the same kernels: they are equally fast, but for
            chance.
        bits: of a weight.
        uncompressed: whether it is the baseline itself.
    """

    choices: dict[str, str]
    network: str
    program: str
    family: str
    effort: float
    engine: str
    formats: str
    kernels: str
    bits: int
    uncompressed: bool

    @property
    def twin_kernels(self) -> str:
        """The kernels of the same engine's fp32."""
        return digest(self.network, self.engine, "float32", "float32", "")


def candidate_of(cell: Cell) -> Candidate:
    """How a search knows a cell."""
    method = identity(cell.method)
    asked = [float(method.pop(name)) for name in EFFORTS if isinstance(method.get(name), int | float)]
    effort = 1.0
    for each in asked:
        effort *= max(each, 1.0)
    same_layers = isinstance(cell.method, QuantizingMethod) and not cell.method.replaces_layers
    plain = same_layers or cell.twin is cell
    network = digest(BASELINE.key_of(cell), identity(cell.protocol), [cell.dataset.name, cell.model.name])
    weights, activations = cell.scheme.weights, cell.scheme.activations
    formats = [asdict(each) if isinstance(each, Grid) else each for each in (weights, activations)]
    engine = digest(identity(cell.backend), identity(cell.target))
    return Candidate(
        choices=cell.choices,
        network=network,
        program=COMPRESSED.key_of(cell),
        family=digest(network, method, formats, cell.scheme.fuses_functions, cell.scheme.yields_floats),
        effort=effort,
        engine=engine,
        formats=digest(network, *formats, "" if plain else method),
        kernels=digest(network, engine, *formats, "" if plain else method),
        bits=weights.bits if isinstance(weights, Grid) else _FLOAT_BITS[weights],
        uncompressed=cell.twin is cell,
    )
