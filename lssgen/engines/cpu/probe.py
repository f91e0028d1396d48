"""How each component of a bundle may be computed: candidates against float32 on seeded inputs, remembered.

A candidate is a number format, and whether the compiled model is kept on disk. Both are tried, because both can be
wrong: OpenVINO 2026.4.1 gives NaN for a network with convolutions that is compiled for bfloat16 into a cache folder
where it already was for float32. Since a probe has shown that, every compiled model has a folder of its own.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.durable import write_whole
from lssgen.engines.demand import Demand, profiles_of
from lssgen.jsons import JsonError, read_json
from lssgen.parity.accuracy import Outputs, relative_error
from lssgen.parity.samples import sample_inputs
from lssgen.ports import Array

Format = Literal["f32", "bf16"]

BOUNDS: Mapping[Format, float] = {"f32": 1e-3, "bf16": 1e-2}
"""Largest relative L2 error of an output against float32. Components of the models measured here move by 1e-3 to 9e-3
in bfloat16, which has 8 bits of mantissa; one that moves by more than 1 % computes in float32 instead. The bound of
float32 is that of exported graphs."""

WRONG = 1e6
"""Error of outputs that are not finite, or further off than this; JSON has no infinity."""

ASKED_FOR: Mapping[Format, float] = {**BOUNDS, "bf16": 0.1}
"""Bounds of a format that the user has asked for. Rounding to bfloat16 moves no component by so much; an engine's
mistake does."""

VOCABULARY = 256
"""Ids that a token input of a probe may hold; every text encoder knows more."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A way to compute a component.

    Attributes:
        format: Number format.
        kept: True where the compiled model is kept on disk.
    """

    format: Format
    kept: bool

    def __str__(self) -> str:
        return f"{self.format}, {'kept on disk' if self.kept else 'compiled at every start'}"


PLAIN = Candidate(format="f32", kept=False)
"""Candidate that all others are compared with."""

CANDIDATES = (
    Candidate(format="bf16", kept=True),
    Candidate(format="bf16", kept=False),
    Candidate(format="f32", kept=True),
)
"""The others, best first."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found about a component.

    Attributes:
        errors: Largest relative L2 error of an output, by candidate, as its text.
    """

    errors: Mapping[str, float]

    def best(self, candidates: Sequence[Candidate], bounds: Mapping[Format, float] = BOUNDS) -> Candidate:
        """The first candidate that stays within its bound; the plain one if none does."""
        fitting = (one for one in candidates if self.errors.get(str(one), WRONG) <= bounds[one.format])
        return next(fitting, PLAIN)


@dataclass(frozen=True, slots=True)
class Probing:
    """How a probe is made.

    Attributes:
        version, processor: Versions and processor that the finding belongs to.
        candidates: Candidates to try.
        run: Function that computes the graph as a candidate says.
    """

    version: str
    processor: str
    candidates: tuple[Candidate, ...]
    run: Callable[[Candidate, Mapping[str, Array]], Mapping[str, Array]]


def finding_of(bundle: Bundle, graph: str, probing: Probing) -> Finding:
    """The finding about a graph: remembered, or made now.

    Raises:
        BuildError: The graph cannot be computed at all.
    """
    note = _note(bundle, graph, probing)
    with suppress(JsonError):  # a note that is missing or cannot be read is none: probed again
        return read_json(note, Finding)
    found = _probed(bundle, graph, probing)
    with suppress(OSError):  # a home that one may only read costs the next start its time, and nothing else
        write_whole(note, msgspec.json.encode(found))
    return found


def _probed(bundle: Bundle, graph: str, probing: Probing) -> Finding:
    entry = bundle.manifest.graphs[graph]
    profiles = profiles_of(bundle.manifest, Demand(graphs=(graph,), previews=True)).get(graph)
    if not profiles:
        return Finding(errors={})  # it runs at no usual size: there is nothing to probe with
    axes = {axis: extent.best for axis, extent in profiles[0].axes.items()}
    inputs = sample_inputs(entry.inputs, axes, vocabulary={port.name: VOCABULARY for port in entry.inputs})
    wanted = probing.run(PLAIN, inputs)

    def error(candidate: Candidate) -> float:
        # What is kept is used twice: as it is compiled, and as it is read back.
        return max(_error(probing.run(candidate, inputs), wanted) for _ in range(1 + candidate.kept))

    return Finding(errors={str(candidate): error(candidate) for candidate in probing.candidates})


def _error(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    if not Outputs(got).finite:
        return WRONG
    return min(max(relative_error(got[name], value) for name, value in wanted.items()), WRONG)


def _note(bundle: Bundle, graph: str, probing: Probing) -> Path:
    entry = bundle.manifest.graphs[graph]
    said = repr((entry.key, sorted(entry.sha256.items()), probing.version, probing.processor, probing.candidates))
    return paths.engines() / "openvino" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"
