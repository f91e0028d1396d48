"""What engine is needed, whether a built one is it, and how much device memory engines take: pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lssgen.engines.demand import Profile
from lssgen.engines.memory import in_turn_bytes
from lssgen.engines.trt.report import Report
from lssgen.ports import Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Everything that decides an engine's bytes: its key is the hash of this.

    Attributes:
        graph: Name of the graph in the bundle.
        content: Hash of the graph and its weights; its precision is in the types inside.
        backend, version: The library; engines of another version are refused by it.
        targets: Architectures it must run on.
        options: Options of the build.
        profiles: Sizes it must hold, see `arranged`.
    """

    graph: str
    content: str
    backend: str
    version: str
    targets: tuple[str, ...]
    options: Mapping[str, object]
    profiles: tuple[Profile, ...]


def arranged(profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    """Profiles, each once, the smallest first: in one order however they were asked for, since they are in a key."""
    known = {tuple(sorted(profile.axes.items())): profile for profile in profiles}
    return tuple(known[axes] for axes in sorted(known, key=lambda axes: (prod(e.best for _, e in axes), axes)))


def misfits(need: Need, report: Report) -> str:
    """Why an engine is not what is needed, in words; empty where it is. It may hold more profiles and targets."""
    if report.graph != need.graph:
        return f"is of the graph {report.graph!r}"
    if report.content != need.content:
        return "was made from other weights"
    if (report.backend, report.version) != (need.backend, need.version):
        return f"was built by {report.backend} {report.version}, and this is {need.backend} {need.version}"
    if missing := sorted(set(need.targets) - set(report.targets)):
        return f"was built for {', '.join(report.targets)}, and not for {', '.join(missing)}"
    if report.options != need.options:
        return f"was built with {dict(report.options)}"
    if absent := [profile for profile in need.profiles if profile not in report.profiles]:
        return f"lacks the profile {absent[0]}"
    return ""


def device_bytes(reports: Sequence[Report], *, in_turn: bool) -> int:
    """Device memory that engines take, in bytes, predicted from their reports.

    Args:
        reports: Reports of all engines that are to be ready at the same time.
        in_turn: Weights of large networks are on the device in turn (low-memory mode), and weights that can be
            streamed stay on the host: the least that a run can do with.

    Returns:
        Weights, scratch and the tensors between graphs. CUDA itself takes some 300 to 500 MB more, and so do execution
        contexts, a few MB each, of which no report knows.
    """
    streamed = [in_turn and bool(report.options.get("weight_streaming")) for report in reports]
    weights = [0 if away else report.weight_bytes for away, report in zip(streamed, reports, strict=True)]
    scratch = max((report.scratch_bytes for report in reports), default=0)
    return (in_turn_bytes(weights) if in_turn else sum(weights)) + scratch + sum(map(io_bytes, reports))


def io_bytes(report: Report) -> int:
    """Bytes of a graph's inputs and outputs in its largest profile."""
    ports = (*report.inputs, *report.outputs)
    return max((sum(_port_bytes(port, profile) for port in ports) for profile in report.profiles), default=0)


def _port_bytes(port: Port, profile: Profile) -> int:
    return prod(extent.high for extent in profile.shape(port)) * np.dtype(port.dtype).itemsize
