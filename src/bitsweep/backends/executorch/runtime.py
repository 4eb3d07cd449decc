"""ExecuTorch files as functions of images, and what XNNPACK executes of them."""

import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401  (kernels of what XNNPACK leaves over)
import torch
from executorch.extension.pybindings import portable_lib

from bitsweep.config.backend import InferenceFn
from bitsweep.errors import DataError, damaged, require_images
from bitsweep.results import Array, OpProfile

#: XNNPACK's operators that multiply and accumulate, and its types of codes.
LAYERS = ("Convolution", "Deconvolution", "Fully Connected", "Batch Matrix Multiply")
CODES = re.compile(r"\b(Q[SUCD]8|[SU]8\b)")


def inference_fn(path: Path, *, threads: int) -> InferenceFn:
    """A file as a function of images.

    Raises:
        StoreError: the file is missing, truncated or of another version of ExecuTorch.
    """
    module, facts = _load(path, threads=threads)
    shape, max_batch = tuple(facts["shape"]), facts["max_batch"]

    def run(images: Array) -> Array:
        require_images(images, shape)
        if len(images) > max_batch:
            raise DataError(f"images: {len(images)} given; the artifact takes {max_batch}: set backend.max_batch")
        (logits,) = module.forward([torch.from_numpy(images)])
        result: Array = logits.numpy()
        return result

    return run


def profile_of(path: Path, images: Array, *, threads: int) -> tuple[OpProfile, ...]:
    """What XNNPACK executed for one batch, from its profile; layers run in the order of the program."""
    from executorch.devtools.inspector import Inspector

    module, facts = _load(path, threads=threads, profile=True)
    module.forward([torch.from_numpy(images)])
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.write_etdump_result_to_file(f"{scratch}/profile.etdp")
        blocks = Inspector(etdump_path=f"{scratch}/profile.etdp").event_blocks
    names = [event.name for block in blocks if block.name == "Execute" for event in block.events]
    macs = iter(facts["macs"])
    executed = [name for name in names if "(" in name]
    return tuple(
        OpProfile(
            name=f"xnnpack_{index}",
            op=name.partition(" #")[0],
            macs=next(macs) * len(images) if name.startswith(LAYERS) else 0,
            integer=CODES.search(name) is not None,
        )
        for index, name in enumerate(executed)
    )


def _load(path: Path, *, threads: int, profile: bool = False) -> tuple[Any, dict[str, Any]]:
    """A file and its facts. The threads are those of the whole process."""
    portable_lib._unsafe_reset_threadpool(threads)
    try:
        module = portable_lib._load_for_executorch(str(path), enable_etdump=profile)
        (facts,) = module.run_method("facts", [])
        return module, json.loads(facts)
    except Exception as error:
        raise damaged(path, error) from error
