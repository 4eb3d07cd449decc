"""What the forms that ONNX Runtime gets are worth: files with and without each, in turn.

    python benchmarks/onnx_kernels.py --networks resnext50_32x4d regnetx_002 --size 128

Networks are timm's, with random weights. Printed is how many times as fast int8 is with both forms as with one of them
missing, and as fp32, with 95 % intervals.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch

import bitsweep as bs
from bitsweep import stats
from bitsweep.config.backend import InferenceFn
from bitsweep.lowering.onnx.export import export_onnx
from bitsweep.measuring.timing import block, pin, runs_a_block
from bitsweep.results import Array
from bitsweep.runtime.environment import current_cpu

#: Arguments of `export_onnx` that are left out one by one.
FORMS = ("convolved_averages", "wide_groups")


def files_of(network: torch.nn.Module, images: torch.Tensor, folder: Path) -> dict[str, InferenceFn]:
    """The network in int8 with all forms, without each, and in fp32; one thread each."""
    backend = bs.grid("precision=int8")[0].backend
    int8 = bs.compress(network, images).compression.program
    fp32 = bs.compress(network, images, precision="fp32", method="none").compression.program
    wanted = {"int8": int8, **dict.fromkeys((f"without {form}" for form in FORMS), int8), "fp32": fp32}
    found = {}
    for name, program in wanted.items():
        (place := folder / name).mkdir()
        forms = {form: name != f"without {form}" for form in FORMS}
        export_onnx(program, place / "model.onnx", codes_of_gates=True, float_weights=False, bits_of_weights=2, **forms)
        found[name] = backend.load(place, threads=1)
    return found


def main() -> None:
    """Print a line for each network and form."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnext50_32x4d", "regnetx_002", "resnet18d"])
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--block-s", type=float, default=0.25)
    arguments = parser.parse_args()
    protocol = bs.grid(f"protocol.block_s={arguments.block_s}")[0].protocol
    cpu = current_cpu()
    print(f"1 thread, batch 1, {arguments.size} px; {cpu.model} ({cpu.isa})")
    for name in arguments.networks:
        torch.manual_seed(0)
        network, images = timm.create_model(name).train(), torch.randn(8, 3, arguments.size, arguments.size)
        with torch.no_grad():
            network(images)  # statistics of its normalisations
        with tempfile.TemporaryDirectory() as folder:
            loaded = files_of(network.eval(), images, Path(folder))
            pin(1)
            image = np.ascontiguousarray(images[:1].numpy())
            runs = {which: runs_a_block(infer, image, protocol) for which, infer in loaded.items()}
            blocks: dict[str, list[Array]] = {which: [] for which in loaded}
            for turn in range(arguments.rounds):
                for which in loaded if turn % 2 == 0 else reversed(loaded):
                    blocks[which].append(block(loaded[which], image, runs[which]))
        for which in list(loaded)[1:]:
            gain = stats.paired_speedup(blocks[which], blocks["int8"], confidence=0.95, seed=0)
            ms = [float(np.median(np.concatenate(blocks[each]))) for each in (which, "int8")]
            found = f"{gain.ratio:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
            print(f"{name:18} {which:26} {ms[0]:.3g} ms, int8 {ms[1]:.3g}: {found}")


if __name__ == "__main__":
    main()
