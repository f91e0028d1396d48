"""One build as it is handed to the compiler, and the compiler's answers: records that cross a pipe as lines of JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lssgen.engines.demand import Profile
from lssgen.engines.trt.library import Flavour
from lssgen.engines.trt.options import BuildOptions
from lssgen.engines.trt.report import Unfused
from lssgen.ports import Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One engine to build.

    Attributes:
        flavour: Library that builds it.
        name: Name of the graph, for messages.
        onnx: File of the graph; weights in other files lie beside it.
        inputs: Input ports of the graph.
        profiles: Sizes to build for.
        targets: Architectures, for TensorRT-RTX; TensorRT builds for the GPU.
        options: Choices that change the engine.
        timings: File of measurements to begin with and to add to; None where the library measures nothing.
        device_id: Number of the GPU that the compiler uses; None where it needs none.
    """

    flavour: Flavour
    name: str
    onnx: Path
    inputs: tuple[Port, ...]
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...]
    options: BuildOptions = field(default_factory=BuildOptions)
    timings: Path | None = None
    device_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about an engine when it is built.

    Attributes:
        plan_bytes: Size of its file.
        plan_sha256: Hash of its file.
        weight_bytes: Device memory of the weights.
        activation_bytes: Scratch device memory of each profile.
        attentions: Number of attentions in the network before compilation.
        unfused: Attentions that did not become one kernel.
        largest: Largest tensor between two layers: (bytes, ONNX node that makes it).
        layers: Number of layers after compilation, of all profiles.
        coded: Number of products and attentions of codes, see `Report.coded`.
    """

    plan_bytes: int
    plan_sha256: str
    weight_bytes: int
    activation_bytes: tuple[int, ...]
    attentions: int
    unfused: tuple[Unfused, ...]
    largest: tuple[int, str]
    layers: int
    coded: Mapping[str, int] = field(default_factory=dict[str, int])


class Request(msgspec.Struct, frozen=True, tag="request"):
    """The first line to the compiler: what to build, and the file to write the plan to."""

    job: Job
    plan: Path


class Step(msgspec.Struct, frozen=True, tag="step"):
    """The compiler is in a phase, and has done a share of its work, from 0 to 1."""

    phase: str
    share: float


class Warned(msgspec.Struct, frozen=True, tag="warned"):
    """The compiler has something to say to the user."""

    text: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The build failed with an error of `lssgen.errors`, by its name."""

    kind: str
    text: str


class Unwritten(msgspec.Struct, frozen=True, tag="unwritten"):
    """The plan could not be written, or another file: an OSError by its number, text and file."""

    number: int | None
    text: str
    file: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The plan is written."""

    facts: Facts


Answer = Step | Warned | Refused | Unwritten | Done


def line(message: Request | Answer) -> bytes:
    """A message as a line."""
    # str for Path, the only type here that JSON does not have. JSON escapes line ends, so a message is one line.
    return msgspec.json.encode(message, enc_hook=str) + b"\n"


def request_of(text: bytes) -> Request:
    """The first line to the compiler, read."""
    return msgspec.json.decode(text, type=Request, dec_hook=_path)


def answer_of(text: bytes) -> Answer:
    """A line from the compiler, read."""
    return msgspec.json.decode(text, type=Answer)


def _path(kind: Any, text: Any) -> Path:
    assert kind is Path, "the only type here that JSON does not have"
    return Path(text)
