"""What the machine has."""

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path


def cpus() -> int:
    """Number of CPUs that this process may use."""
    # Not os.cpu_count: taskset, Slurm and Docker's --cpuset-cpus leave a process fewer. Linux only.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name as the system gives it, and the instructions that decide what it computes in."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    names = dict(re.findall(r"^(model name|CPU part|flags)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set(names.get("flags", "").split())
    extras = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join((names.get("model name") or names.get("CPU part") or platform.processor(), *extras)).strip()


def at_most_cpus(count: int, what: str, say: Callable[[str], object]) -> int:
    """A number of threads or processes, cut down to the CPUs that this process may use; says so where it cuts."""
    most = cpus()
    if count > most:
        say(f"{count} {what} are asked for, but this machine has {most} CPU{'s' * (most > 1)}; using {most}")
    return min(count, most)


def free_memory() -> int | None:
    """Bytes of memory that this process may still take; None where the system does not say.

    What the system could take back from its file cache counts as free, and a container's limit counts.
    """
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None
    limits = [left for left in map(_left_in, _cgroups()) if left is not None]
    return min(free, *limits) if limits else free


def _cgroups() -> list[Path]:
    """Folders of the control groups that limit this process, its own and those around it."""
    root = Path("/sys/fs/cgroup")
    try:
        # "0::" is the line of cgroup v2; what v1 has is not asked, so that there the machine's own memory counts.
        own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")
    except OSError:
        own = ""
    # Every group around it may have a limit too, and a lower one.
    return [root / own, *(root / own).parents][: len(Path(own).parts) + 1]


def _left_in(group: Path) -> int | None:
    """Bytes left in a control group; None where it has no limit."""
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(int(limit) - int(used) + int(cache.get("inactive_file", 0)), 0)
    except (OSError, ValueError):  # "max" is not a number: there is no limit
        return None
