"""Where a measurement was made: CPU and its instruction set, memory, versions, commit. Imports no torch."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitsweep.runtime.cpu_quota import cpu_quota

#: Packages that another distribution holds too, built for GPUs.
_GPU_BUILDS = {"onnxruntime": "onnxruntime-gpu"}

_CPUINFO = Path("/proc/cpuinfo")
#: The field of that file that holds the flags, by how names of architectures begin.
_FLAGS = {"x86": "flags", "arm": "Features", "aarch64": "Features"}
#: Ends the model of a processor that is none.
_EMULATED = "(emulated)"


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """A processor, as far as quantized inference depends on it.

    Attributes:
        model: marketing name.
        architecture: ``x86_64``, ``aarch64``, ...
        flags: instruction-set flags as the kernel names them.
    """

    model: str
    architecture: str
    flags: frozenset[str]

    def __str__(self) -> str:
        return f"CPU ({self.isa})"

    @property
    def isa(self) -> str:
        """The widest instruction set that matters for integer kernels, e.g. ``avx2`` or ``avx512_vnni``."""
        widest_first = (
            "amx_int8", "avx512_vnni", "avx_vnni", "avx512bw", "avx2", "i8mm", "asimddp", "asimd",
        )  # fmt: skip
        return next((flag for flag in widest_first if flag in self.flags), self.architecture)

    @property
    def is_emulated(self) -> bool:
        """Whether it is a program that runs on a processor of another architecture."""
        return self.model.endswith(_EMULATED)

    @property
    def saturates_u8s8(self) -> bool:
        """Whether u8 x s8 kernels add pairs of products in saturating 16 bits (x86 without VNNI or AMX)."""
        return self.architecture == "x86_64" and not self.flags & {"amx_int8", "avx512_vnni", "avx_vnni"}

    @property
    def computes_fp16(self) -> bool:
        """Whether the CPU multiplies and adds half-precision vectors (AVX512-FP16, AMX-FP16, ARM FP16)."""
        return bool(self.flags & {"avx512_fp16", "amx_fp16", "asimdhp"})

    @property
    def computes_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 vectors (AVX512-BF16, AMX-BF16, ARM BF16)."""
        return bool(self.flags & {"avx512_bf16", "amx_bf16", "bf16"})


@functools.cache
def current_cpu() -> Cpu:
    """The processor of this machine; flags are empty where the system does not report them."""
    architecture = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    model, flags = _read_from_linux(architecture) if _CPUINFO.exists() else _read_by_cpuinfo()
    return Cpu(model=model or platform.processor() or architecture, architecture=architecture, flags=flags)


def _read_from_linux(architecture: str) -> tuple[str, frozenset[str]]:
    """Model and flags of the CPU, in a millisecond; ``py-cpuinfo`` starts programs, and takes more than a second.

    An emulator shows the file of the machine that it runs on, whose flags are not those of what it emulates.
    """
    fields: dict[str, str] = {}
    for line in _CPUINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    own = next((field for start, field in _FLAGS.items() if architecture.startswith(start)), None)
    if flags and own and own not in fields:
        return f"{architecture} {_EMULATED}", frozenset()
    return fields.get("model name", ""), frozenset(flags.split())


def _read_by_cpuinfo() -> tuple[str, frozenset[str]]:
    """Model and flags of the CPU on other systems; some of the flags are written there without underscores."""
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    flags = (re.sub(r"^avx512(?=[a-z]{4})", "avx512_", flag) for flag in info.get("flags", ()))
    return str(info.get("brand_raw", "")), frozenset(flags)


@functools.cache
def last_cache_bytes() -> int:
    """Size of the cache that is next to memory, of the first CPU; 0 where the system does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = file.read_text().strip()
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=0)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        model: marketing name.
        architecture: its compute capability as engines name it, e.g. ``sm89``.
    """

    model: str
    architecture: str

    def __str__(self) -> str:
        return f"GPU ({self.architecture})"

    @property
    def computes_fp16(self) -> bool:
        """Whether the GPU multiplies half-precision matrices (Volta and later)."""
        return int(self.architecture.removeprefix("sm")) >= 70

    @property
    def computes_bf16(self) -> bool:
        """Whether the GPU multiplies bfloat16 matrices (Ampere and later)."""
        return int(self.architecture.removeprefix("sm")) >= 80


@functools.cache
def current_gpu() -> Gpu | None:
    """The first NVIDIA GPU that this process may use, as its driver describes it; None where there is no such thing."""
    try:
        from cuda.bindings import driver

        of_driver(driver.cuInit(0))
        (device,) = of_driver(driver.cuDeviceGet(0))
    except (ImportError, RuntimeError):  # no package for this system, no driver, no GPU
        return None
    (model,) = of_driver(driver.cuDeviceGetName(256, device))
    wanted = driver.CUdevice_attribute
    major, minor = (
        of_driver(driver.cuDeviceGetAttribute(attribute, device))[0]
        for attribute in (
            wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return Gpu(model=model.partition(b"\0")[0].decode(), architecture=f"sm{major}{minor}")


def of_driver(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a function of CUDA's driver gives besides its status.

    Raises:
        RuntimeError: the status is an error.
    """
    status, *values = answer
    if int(status):
        raise RuntimeError(f"CUDA's driver answers {status.name}")
    return tuple(values)


def usable_cpus() -> list[int]:
    """Numbers of the CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Physical cores that this process may keep busy: by its affinity and its quota of CPU time, at least one."""
    import psutil

    allowed = len(usable_cpus())
    limits = (allowed, psutil.cpu_count(logical=False) or allowed, int(cpu_quota() or allowed))
    return max(1, min(limits))


@functools.cache
def version_of(package: str) -> str:
    """Installed version of a distribution, or ``absent``; does not import it."""
    for distribution in filter(None, (package, _GPU_BUILDS.get(package))):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return "absent"


def release_of(package: str) -> str:
    """Installed version of a distribution as package indexes list it, without the label of a build; or ``absent``."""
    return version_of(package).partition("+")[0]


@functools.cache
def commit() -> str:
    """Abbreviated git commit of the source tree, with ``-dirty`` when it was changed, or ``unknown``."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() if described.returncode == 0 and described.stdout.strip() else "unknown"


@functools.cache
def _declared_packages() -> tuple[str, ...]:
    """Distributions that this one says it uses, but for its development."""
    try:
        required = importlib.metadata.requires("bitsweep") or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in required if 'extra == "dev"' not in line]
    return tuple(name[0] for name in names if name)


def describe(*packages: str) -> dict[str, Any]:
    """Everything about this machine and installation that a figure should travel with, as JSON types.

    Args:
        packages: distributions that plug-ins use, besides those that this one declares.
    """
    import psutil

    cpu, gpu = current_cpu(), current_gpu()
    named = dict.fromkeys((*_declared_packages(), *packages))
    return {
        "cpu": {**asdict(cpu), "flags": sorted(cpu.flags), "isa": cpu.isa},
        "gpu": asdict(gpu) if gpu else None,
        "logical_cores": psutil.cpu_count(logical=True),
        "physical_cores": psutil.cpu_count(logical=False),
        "cpu_quota": cpu_quota(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in named if (found := version_of(name)) != "absent"},
        "commit": commit(),
    }
