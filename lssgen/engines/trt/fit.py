"""Whether a built engine is the one that is needed, and how much device memory engines take: pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lssgen.engines.demand import Profile
from lssgen.engines.trt.report import Report
from lssgen.ports import Port

_SMALL_PART = 16
"""A network of at most this part of the largest one is small: transitions, and a VAE beside a large step network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Everything that decides an engine's bytes: its key is the hash of this.

    Attributes:
        graph: Name of the graph in the bundle.
        content: Hash of the graph and its weights; its precision is in the types inside.
        backend, version: The library; engines of another version are refused by it.
        targets: Architectures it must run on.
        options: Of the build.
        profiles: Sizes it must hold.
    """

    graph: str
    content: str
    backend: str
    version: str
    targets: tuple[str, ...]
    options: Mapping[str, object]
    profiles: tuple[Profile, ...]


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


def stays(size: int, largest: int) -> bool:
    """Whether a network stays on the device in low-memory mode: a small one is not worth the largest one's way back."""
    return size * _SMALL_PART <= largest


def in_turn_bytes(weights: Sequence[int]) -> int:
    """Device memory of weights in low-memory mode: those of the largest network, and of all that stay."""
    largest = max(weights, default=0)
    return largest + sum(size for size in weights if stays(size, largest))


def device_bytes(reports: Sequence[Report], *, in_turn: bool) -> int:
    """Device memory of a run, in bytes, predicted from the reports before anything is loaded.

    Args:
        reports: Of all graphs of the run.
        in_turn: Weights of large networks are on the device in turn (low-memory mode), and weights that can be
            streamed stay on the host: the least that a run can do with.

    Returns:
        Weights, scratch and the tensors between graphs. CUDA itself takes some 300 to 500 MB more.
    """
    streamed = [in_turn and bool(report.options.get("weight_streaming")) for report in reports]
    weights = [0 if away else report.weight_bytes for away, report in zip(streamed, reports, strict=True)]
    scratch = max((size for report in reports for size in report.activation_bytes), default=0)
    tensors = sum(io_bytes(report) for report in reports)
    return (in_turn_bytes(weights) if in_turn else sum(weights)) + scratch + tensors


def io_bytes(report: Report) -> int:
    """Bytes of a graph's inputs and outputs in its largest profile."""
    ports = (*report.inputs, *report.outputs)
    return max((sum(_port_bytes(port, profile) for port in ports) for profile in report.profiles), default=0)


def _port_bytes(port: Port, profile: Profile) -> int:
    return prod(extent.high for extent in profile.shape(port)) * np.dtype(port.dtype).itemsize
