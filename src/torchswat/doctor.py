"""`examine`: what torchswat finds on this machine, and what is slow or missing, each with its remedy."""

from __future__ import annotations

import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import torchswat
from torchswat import data
from torchswat.engine import loader, plan
from torchswat.engine.allocator import tune_allocator
from torchswat.errors import TorchswatError

Facts = dict[str, dict[str, Any]]
"""Plain values by section and name."""

LIBRARIES: dict[str, tuple[str, ...]] = {
    "train": (
        *("accelerate", "jinja2", "matplotlib", "pillow", "pydantic", "pyyaml", "rich", "safetensors"),
        *("scikit-learn", "tensorboard", "typer"),
    ),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "serve": ("anyio", "h11", "pillow", "prometheus-client", "starlette", "uvicorn"),
}
"""The packages of each extra."""

_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_SHOWN_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
_SETTINGS = (
    "TORCHSWAT_",
    "OMP_",
    "MKL_",
    "ONEDNN_",
    "ATEN_",
    "KMP_",
    "GOMP_",
    "MALLOC_",
    "THP_",
    "LD_PRELOAD",
)
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_OPENMP = re.compile(r"/(lib(?:gomp|iomp5|omp)\b[^/]*)$")


@dataclass(frozen=True)
class Finding:
    """Something that is slow or missing.

    Attributes
    ----------
    kind : {"slow", "missing"}
    problem, remedy : str
        In plain words; a remedy says what to do, or that nothing can be done.
    """

    kind: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found; printed, it is a list.

    Attributes
    ----------
    facts : dict of str to dict
        Plain values by section and name.
    findings : tuple of Finding
        What is slow or missing.
    """

    facts: Facts
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {**self.facts, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        lines = []
        for section, values in self.facts.items():
            lines += [section, *(f"  {name}: {_text(value)}" for name, value in values.items())]
        for kind, title in (("slow", "What is slow, and why"), ("missing", "What is missing")):
            found = [each for each in self.findings if each.kind == kind]
            lines += ["", title if found else f"{title}: nothing was found"]
            for each in found:
                lines += [f"- {each.problem}", f"  Remedy: {each.remedy}"]
        return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each or 'missing'}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def examine(data_root: Path | None = None) -> Diagnosis:
    """Return what there is on this machine, and what follows from it for the speed.

    Parameters
    ----------
    data_root : Path, optional
        Folder with the data sets; by default that of the environment variable TORCHSWAT_DATA.

    Returns
    -------
    Diagnosis

    Examples
    --------
    >>> sorted(examine().facts)[:4]
    ['allocator', 'data', 'engine', 'environment']
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engine's warnings are among the findings
        facts = {
            "versions": _versions(),
            "processor": _processor(),
            "torch": _torch(),
            "engine": _engine(),
            "allocator": _allocator(),
            "plan": _plan(),
            "data": _data(data_root),
            "libraries": {extra: {name: _version(name) for name in LIBRARIES[extra]} for extra in LIBRARIES},
            "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_SETTINGS)},
        }
    return Diagnosis(facts, tuple(findings(facts)))


# ---- facts -------------------------------------------------------------------------------------------------


def _versions() -> dict[str, Any]:
    return {
        "torchswat": torchswat.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _processor() -> dict[str, Any]:
    flags, name = _flags_and_name()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": name,
        "instruction set": _best_instruction_set(flags),
        "flags": [flag for flag in _SHOWN_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cores allowed": allowed,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _flags_and_name() -> tuple[set[str], str]:
    """Return the processor's features and its name, as the kernel of Linux says; no features elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    return set(fields.get("flags", "").split()), name


def _best_instruction_set(flags: set[str]) -> str:
    if {"avx2", "fma", "f16c"} <= flags:
        if flags >= _AVX512:
            if "avx512_vnni" not in flags:
                return "avx512"
            return "avx512bf16" if "avx512_bf16" in flags else "avx512vnni"
        return "avx2"
    return "plain"


def _torch() -> dict[str, Any]:
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {
        "version": torch.__version__,
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "BLAS": blas.group(1) if blas else None,
        "oneDNN": torch.backends.mkldnn.is_available(),
        "OpenMP": torch.backends.openmp.is_available(),
        "threads": torch.get_num_threads(),
        "CUDA build": torch.version.cuda,
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _engine() -> dict[str, Any]:
    try:
        info = loader.info()
        loader.native()  # which raises what a layer would raise
    except TorchswatError as error:
        return {"engine": None, "reason": str(error)}
    runtimes = [found.group(1) for found in map(_OPENMP.search, _loaded_libraries()) if found]
    return {**info, "OpenMP runtimes loaded": runtimes}


def _loaded_libraries() -> list[str]:
    """Return the files of the libraries in this process; none where the system is not Linux."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split(maxsplit=5)[5] for line in lines if ".so" in line})


def _allocator() -> dict[str, Any]:
    others = [name for name in _ALLOCATORS if any(name in path for path in _loaded_libraries())]
    libc = " ".join(platform.libc_ver()) or "not glibc"
    return {"C library": libc, "replaced by": others, "can be tuned": not others and tune_allocator()}


def _plan() -> dict[str, Any]:
    asked = os.environ.get("TORCHSWAT_PLAN", "")
    file = plan.path()
    stored = plan.table(file)
    try:
        machine = plan.machine()
    except TorchswatError:  # the engine cannot be asked; that is a finding of its own
        machine = "unknown"
    changed = (
        time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime)) if file.is_file() else None
    )
    return {
        "TORCHSWAT_PLAN": asked or None,
        "file": str(file),
        "changed": changed,
        "this machine": machine,
        "timings of this machine": len(stored.get(machine, {})),
        "timings of others": {name: len(rows) for name, rows in stored.items() if name != machine},
    }


def _data(root: Path | None) -> dict[str, Any]:
    try:
        folder = data.data_root(root)
    except TorchswatError as error:
        return {"folder": str(error)}
    return {"folder": str(folder), **{name: data.state(name, folder) for name in data.names()}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---- findings ----------------------------------------------------------------------------------------------


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is slow or missing by the facts of `examine`."""
    yield from _of_engine(facts["engine"], facts["processor"], facts["environment"])
    yield from _of_torch(facts["torch"], facts["processor"])
    yield from _of_threads(facts["torch"], facts["processor"], facts["environment"])
    yield from _of_allocator(facts["allocator"])
    yield from _of_plan(facts["plan"])
    for extra, packages in facts["libraries"].items():
        absent = [name for name, version in packages.items() if version is None]
        if absent:
            yield Finding(
                "missing", f"Not installed: {', '.join(absent)}.", f'pip install "torchswat[{extra}]"'
            )
    if "found" not in facts["data"].values():
        yield Finding(
            "missing",
            f"No data set is found in {facts['data']['folder']}; the 8x8 digits are built in.",
            "Name the folder with the data sets by --data-root or TORCHSWAT_DATA; `torchswat data` says which "
            "files it should hold.",
        )


def _of_engine(
    engine: dict[str, Any], processor: dict[str, Any], settings: dict[str, str]
) -> Iterator[Finding]:
    if engine["engine"] is None:
        yield Finding(
            "slow", f"The native engine cannot run: {engine['reason']}", "Unset or correct that variable."
        )
        return
    if engine["engine"] == "reference":
        if settings.get("TORCHSWAT_ENGINE") == "reference":
            yield Finding(
                "slow",
                "TORCHSWAT_ENGINE=reference: plain torch runs the sparse layers, slower than dense ones.",
                "Unset TORCHSWAT_ENGINE.",
            )
            return
        yield Finding(
            "slow",
            f"The native engine was not built ({engine['reason']}): plain torch runs the sparse layers, "
            "slower than dense ones.",
            "Install a C++17 compiler (on Debian: apt install g++), then install torchswat again.",
        )
        return
    if not engine["openmp"]:
        yield Finding(
            "slow",
            f"The native engine was built without OpenMP: it runs on one thread, torch on {engine['threads']}.",
            "Install torchswat again with a compiler that has OpenMP (on macOS: brew install libomp).",
        )
    yield from _of_instruction_set(engine, processor, settings)
    runtimes = engine["OpenMP runtimes loaded"]
    if len(runtimes) > 1:
        yield Finding(
            "slow",
            f"Several OpenMP runtimes are loaded ({', '.join(runtimes)}): each starts threads of its own.",
            "Install torch and torchswat from the same source of packages, or build torchswat on this machine.",
        )


def _of_instruction_set(
    engine: dict[str, Any], processor: dict[str, Any], settings: dict[str, str]
) -> Iterator[Finding]:
    isa, best = engine["isa"], engine["available"][0]
    if isa != best:
        yield Finding(
            "slow",
            f"TORCHSWAT_ISA={settings.get('TORCHSWAT_ISA', isa)}: the engine runs {isa}, and {best} is available.",
            "Unset TORCHSWAT_ISA.",
        )
    elif isa == "plain" and processor["instruction set"] != "plain":
        yield Finding(
            "slow",
            f"The native engine was built without {processor['instruction set']}, which the processor has.",
            "Install torchswat again, from its sources, on this machine.",
        )
    elif isa == "plain":
        yield Finding(
            "slow",
            "The native engine has no kernels for the vector instructions of this processor.",
            "None. The cost model runs products dense where that is expected to be faster.",
        )
    elif isa == "avx2":
        yield Finding(
            "slow",
            "The processor has AVX2 and no AVX-512: vectors are half as wide.",
            "None. Compare with the results for AVX2, not with those for AVX-512.",
        )


def _of_torch(build: dict[str, Any], processor: dict[str, Any]) -> Iterator[Finding]:
    if processor["instruction set"] != "plain" and build["CPU capability"] in ("DEFAULT", "default"):
        yield Finding(
            "slow",
            f"torch uses no vector instructions, and the processor has {processor['instruction set']}.",
            "Unset ATEN_CPU_CAPABILITY, or install another build of torch.",
        )
    if not build["oneDNN"]:
        yield Finding(
            "slow",
            "torch was built without oneDNN: dense convolutions are slow.",
            "Install a wheel of torch.",
        )
    if not build["OpenMP"]:
        yield Finding(
            "slow", "torch was built without OpenMP: it runs on one thread.", "Install a wheel of torch."
        )
    if build["CUDA build"] and not build["GPU"]:
        yield Finding(
            "slow",
            f"torch is a build for CUDA {build['CUDA build']}, and no GPU is found: it is larger and starts slower.",
            "Install the CPU build of torch, from the index that the installation page of PyTorch names.",
        )
    if build["GPU"]:
        yield Finding(
            "slow",
            f"On {build['GPU']} sparse products are simulated: dense torch multiplies zeros, and no time is saved.",
            "Train on the CPU for speed; on the GPU, study accuracy.",
        )


def _of_threads(
    build: dict[str, Any], processor: dict[str, Any], settings: dict[str, str]
) -> Iterator[Finding]:
    threads, cores = build["threads"], processor["cores allowed"]
    variable = f" (OMP_NUM_THREADS={settings['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in settings else ""
    if threads < cores:
        yield Finding(
            "slow",
            f"torch runs on {threads} of {cores} threads{variable}.",
            f"Call torch.set_num_threads({cores}), set threads in the recipe, or set OMP_NUM_THREADS={cores}. "
            "Where two threads share a core, as many threads as cores are best.",
        )
    if threads > cores:
        yield Finding(
            "slow",
            f"torch runs on {threads} threads{variable}, and this process may use {cores} cores: they take turns.",
            f"Call torch.set_num_threads({cores}), or set OMP_NUM_THREADS={cores}.",
        )
    if processor["load"] is not None and processor["load"] >= cores:
        yield Finding(
            "slow",
            f"Other processes use the processor: over the last minute {processor['load']} of them wanted one of "
            f"{cores} cores.",
            "End them, or wait; times that are measured meanwhile mean little.",
        )


def _of_allocator(allocator: dict[str, Any]) -> Iterator[Finding]:
    if allocator["replaced by"]:
        return
    if allocator["can be tuned"]:
        yield Finding(
            "slow",
            "In a program of your own the allocator is not tuned: glibc maps large tensors anew in every step, "
            "dense ones too.",
            "Call torchswat.tune_allocator() before torch is imported. The command line does so by itself.",
        )
    else:
        yield Finding(
            "slow",
            f"The allocator of this C library ({allocator['C library']}) cannot be tuned.",
            "None, or preload an allocator that keeps large blocks, such as jemalloc.",
        )


def _of_plan(tuned: dict[str, Any]) -> Iterator[Finding]:
    asked = tuned["TORCHSWAT_PLAN"]
    if asked in ("sparse", "dense", "model", "off"):
        what = "the cost model alone decides" if asked in ("model", "off") else f"every product runs {asked}"
        yield Finding(
            "slow",
            f"TORCHSWAT_PLAN={asked}: {what}, whatever was measured.",
            "Unset TORCHSWAT_PLAN, or let it name a file of timings.",
        )
    elif not tuned["timings of this machine"]:
        others = "; ".join(tuned["timings of others"])
        yield Finding(
            "slow",
            f"The tuned plan was measured elsewhere ({others}), and this is {tuned['this machine']}: the cost "
            "model decides which products run sparse."
            if others
            else "Nothing is tuned: the cost model decides which products run sparse.",
            "Call torchswat.tune(model, example) once; `torchswat plan` shows what it measured.",
        )
