"""What further test images add to a cell, beside what its engine alone takes for them, in CPU-seconds.

    python benchmarks/evaluation_cost.py --data FOLDER
    python benchmarks/evaluation_cost.py --data FOLDER --backend onnxruntime --images 1000 2000 --rounds 5

The same cell, MobileNetV3-Small with the weights in FOLDER (see ``trained_networks.py``), is run with few and with many
test images; the difference is what the others cost, from the photograph to the report. The first cell decodes them and
runs the float network on them, a further one finds both done. The engine alone is a script as
one would write it: each photograph is opened by Pillow, resized and normalised, and the cell's own file runs them in
batches. Each run has a folder of its own, and its CPU-seconds are those of all its processes, user and system. The test
images are copies of photographs with a few bytes appended, so that no two files are equal.
"""

import argparse
import ctypes
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from image_folder_cost import fill
from trained_networks import IMAGE_FILES, PHOTOGRAPHS, SIZE

from bitsweep.runtime.environment import current_cpu, version_of

RUN = Path(__file__).parents[1] / "run.py"
WEIGHTS = Path("weights", "mobilenetv3_small_cats_dogs_fp16.pt")
#: ``prctl``'s option by which the children of children that ended are counted here, too.
_SET_CHILD_SUBREAPER = 36
ALONE = """
import sys
from pathlib import Path

import numpy as np
from PIL import Image

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def opened(path):
    pixels = np.asarray(Image.open(path).convert("RGB").resize(({size}, {size}), Image.Resampling.BILINEAR))
    return ((pixels / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)


{load}
paths = sorted(Path(sys.argv[2]).glob("*/*"))
for start in range(0, len(paths), 64):
    infer(np.ascontiguousarray(np.stack([opened(path) for path in paths[start : start + 64]])))
"""
LOADS = {
    "openvino": """
import openvino

model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_NUM_THREADS": 1})
infer = model
""",
    "onnxruntime": """
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)


def infer(images):
    return session.run(None, {"images": images})
""",
}


def main() -> None:
    """Print what the further images cost in each round, and the median ratio."""
    arguments = parse_arguments()
    if ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise SystemExit("the CPU-seconds of all processes of a run can be counted on Linux only")
    versions = ", ".join(f"{each} {version_of(each)}" for each in ("torch", arguments.backend))
    print(f"{current_cpu().model} ({current_cpu().isa}), one thread; {versions}; {arguments.backend}", flush=True)
    few, many = arguments.images
    shown = ("the engine alone", "the first cell", "a further cell")
    ratios = {name: list[float]() for name in shown[1:]}
    with tempfile.TemporaryDirectory() as folder:
        photographs = {count: filled(Path(folder, f"{count}"), arguments.data, count) for count in arguments.images}
        for turn in range(arguments.rounds):
            seconds = dict[int, dict[str, float]]()
            for count in arguments.images:
                work = Path(folder, f"{turn}-{count}")
                first = seconds_of_cell(work, photographs[count], arguments)
                further = seconds_of_cell(work, photographs[count], arguments, "method.calibration_images=128")
                alone = seconds_alone(work, photographs[count], arguments.backend)
                seconds[count] = dict(zip(shown, (alone, first, further), strict=True))
            added = {name: seconds[many][name] - seconds[few][name] for name in shown}
            parts = [f"{name} {of:.1f}" for name, of in added.items()]
            for name, found in ratios.items():
                found.append(added[name] / added[shown[0]])
            print(f"{many - few} further images, CPU-seconds: {', '.join(parts)}", flush=True)
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} times the engine alone")


def parse_arguments() -> argparse.Namespace:
    """Images and engine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sample = os.environ.get("BITSWEEP_TEST_DATA")
    parser.add_argument("--data", type=Path, default=sample, required=not sample, help="see trained_networks.py")
    parser.add_argument("--backend", choices=LOADS, default="openvino")
    parser.add_argument(
        "--images", type=int, nargs=2, metavar=("FEW", "MANY"), default=(1000, 4000), help="test images"
    )
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


def filled(root: Path, data: Path, count: int) -> Path:
    """A data set with so many test images."""
    train, test = PHOTOGRAPHS["cats_dogs"]
    (root / "train").parent.mkdir()
    (root / "train").symlink_to((data / train).resolve())
    sources = sorted(path for path in (data / test).glob("*/*") if path.suffix.lower() in IMAGE_FILES)
    random.Random(0).shuffle(sources)  # few of them have all classes, too
    fill(root / "test", sources, count)
    return root


def seconds_of_cell(work: Path, root: Path, arguments: argparse.Namespace, *settings: str) -> float:
    """CPU-seconds of the int8 cell, and of what it needs and a folder does not have yet."""
    work.mkdir(exist_ok=True)
    overrides = [
        "model=mobilenetv3", f"model.image_size={SIZE}", "model.normalization=imagenet", "train=pretrained",
        f"model.weights={(arguments.data / WEIGHTS).resolve()}", "dataset=image_folder", f"dataset.root={root}",
        "precision=int8", f"backend={arguments.backend}", "protocol=smoke", "protocol.threads=1", *settings,
    ]  # fmt: skip
    return seconds_of([sys.executable, str(RUN), "-m", *overrides], work)


def seconds_alone(work: Path, root: Path, backend: str) -> float:
    """CPU-seconds of the script that runs the file of the cell in a folder on the test images."""
    files = (work / "multirun" / "store").rglob("model.onnx")  # of the cell and, larger, of its fp32 twin
    file = min(files, key=lambda each: sum(beside.stat().st_size for beside in each.parent.iterdir()))
    script = work / "alone.py"
    script.write_text(ALONE.replace("{size}", str(SIZE)).replace("{load}", LOADS[backend]))
    return seconds_of([sys.executable, str(script), str(file), str(root / "test")], work)


def seconds_of(command: list[str], folder: Path) -> float:
    """CPU-seconds of a command with all the processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    while True:  # those whose parents have ended
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
