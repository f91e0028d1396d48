"""Where numbers were measured, as a fingerprint: it is compared before any number is.

Hard facts decide whether two results may be compared at all (machine, device, driver, versions, threads); soft ones
explain a result and are told (load of the machine, clocks, other processes).
"""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from lssgen.machine import cpu_name, cpus, free_memory

PACKAGES = (
    "lssgen", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "cuda-bindings",
)  # fmt: skip
"""Packages whose version decides a latency."""

SMI_FIELDS = ("uuid", "name", "driver_version", "power.limit", "clocks.max.sm", "clocks_throttle_reasons.active")
SMI_HARD = ("uuid", "name", "driver_version", "power.limit", "clocks.max.sm")

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD")
"""Variables of the environment that change how fast a process is."""


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as a measurement saw it.

    Attributes:
        machine: Processor's name, architecture, cores that may be used, system; and of GPUs uuid, name, driver, power
            limit and highest clock.
        software: Versions of Python and of the packages that decide a latency, and variables such as OMP_NUM_THREADS.
        backend: Facts that the engine tells about itself: its name, version, threads, precision.
        state: Facts that may change meanwhile: load, clocks, free memory, other processes on a GPU.
        written: Time in UTC.
    """

    machine: Mapping[str, str]
    software: Mapping[str, str]
    backend: Mapping[str, str]
    state: Mapping[str, str]
    written: str


def environment(backend: Mapping[str, object]) -> Environment:
    """The environment now, for an engine that describes itself as `backend`."""
    return Environment(
        machine=machine_facts(),
        software=software_facts(),
        backend={name: str(value) for name, value in sorted(backend.items())},
        state=state_facts(),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def machine_facts() -> dict[str, str]:
    """What does not change while the machine is up."""
    facts = {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": str(cpus()),
        "system": f"{platform.system()} {platform.release()}",
    }
    return facts | {f"gpu.{name}": value for name, value in _nvidia().items() if name in SMI_HARD}


def software_facts() -> dict[str, str]:
    """Versions and variables."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def state_facts() -> dict[str, str]:
    """What may change from one minute to the next."""
    found: dict[str, str] = {}
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[0]:.2f}"
    if (runnable := _runnable()) is not None:
        found["other_runnable_threads"] = str(max(runnable - 1, 0))
    if (free := free_memory()) is not None:
        found["free_memory_mib"] = str(free >> 20)
    if megahertz := cpu_megahertz():
        found["cpu_mhz"] = f"{megahertz:.0f}"
    found |= {f"gpu.{name}": value for name, value in _nvidia().items() if name not in SMI_HARD}
    if others := _gpu_processes():
        found["gpu.other_processes"] = others
    return found


def differences(one: Environment, other: Environment) -> list[str]:
    """Hard facts in which two environments differ, a sentence each; empty if their numbers may be compared."""
    parts = ("machine", "software", "backend")
    return [said for part in parts for said in facts_that_differ(part, getattr(one, part), getattr(other, part))]


def facts_that_differ(part: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Facts of one kind in which two measurements differ, a sentence each."""
    return [
        f"{part} {name} was {theirs.get(name, 'absent')} and is {ours.get(name, 'absent')}"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def cpu_megahertz() -> float | None:
    """Mean clock of the cores now; None where the system does not say."""
    try:
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return sum(map(float, found)) / len(found) if found else None


def gpu_megahertz() -> float | None:
    """Clock of the first GPU's multiprocessors now; None where there is no nvidia-smi."""
    answer = _smi("--query-gpu=clocks.sm", "--format=csv,noheader,nounits")
    try:
        return float(answer.splitlines()[0])
    except (IndexError, ValueError):
        return None


def _runnable() -> int | None:
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return None


def _nvidia() -> dict[str, str]:
    """Facts of the first GPU that nvidia-smi sees; empty without one."""
    answer = _smi(f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader")
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer.strip() else []
    return dict(zip(SMI_FIELDS, values, strict=False))


def _gpu_processes() -> str:
    """Processes other than this one that compute on a GPU."""
    answer = _smi("--query-compute-apps=pid,process_name", "--format=csv,noheader")
    others = [line.strip() for line in answer.splitlines() if not line.startswith(f"{os.getpid()},")]
    return "; ".join(others)


def _smi(*words: str) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
