"""The statistics file: what a run's activations were, of which bundle, at which stages, by which prompts.

A safetensors file. Its metadata says what it is about (`About`); its tensors are named <kind>.<stage>.<bucket> and hold
the numbers of all taps one after another, in the order in which `About` lists them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lssgen.bundle import Bundle
from lssgen.calibration.observe import BINS, Seen
from lssgen.calibration.taps import Tap
from lssgen.durable import whole_file
from lssgen.errors import CalibrationError
from lssgen.jsons import JsonError, decode_json
from lssgen.ports import Array

FORMAT = 1
SUFFIX = ".safetensors"

BUCKETS = 4
"""Number of equal parts of the share of noise, from 0 to 1, whose activations are remembered apart."""

LEAST_CALLS = 16
"""Calls of the step in a stage below which its ranges are not to be trusted: two prompts of eight steps."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a statistics file is about.

    Attributes:
        format: `FORMAT`.
        lssgen: Version that wrote it.
        family: Family of the model.
        model: Name of the model that the bundle was made of.
        step: Hashes of the step's files, by name.
        stages: (height, width) of every stage in cells, smallest first.
        steps: Number of steps in each stage.
        buckets: Number of noise buckets.
        prompts: Prompts, in order.
        seed: Seed of the first prompt; each has its own.
        settings: Choices that the run was made with, as text.
        engine: Engine that ran it.
        precision: Precision of the step.
        done: Number of prompts whose numbers are in the file.
        taps: Tensors that were listened to.
    """

    format: int = FORMAT
    lssgen: str
    family: str
    model: str
    step: Mapping[str, str]
    stages: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    buckets: int = BUCKETS
    prompts: tuple[str, ...]
    seed: int
    settings: str
    engine: str
    precision: str
    done: int = 0
    taps: tuple[Tap, ...]

    @property
    def finished(self) -> bool:
        """Whether every prompt was run."""
        return self.done == len(self.prompts)


Place = tuple[str, int, int]
"""Name of a tensor, index of a stage, index of a noise bucket."""


@dataclass(slots=True)
class Statistics:
    """What was seen, by place."""

    about: About
    seen: dict[Place, Seen] = field(default_factory=dict[Place, Seen])

    def at(self, tap: Tap, stage: int, bucket: int) -> Seen:
        """What was seen of a tensor in a stage and bucket; made where there is nothing yet."""
        place = (tap.tensor, stage, bucket)
        if place not in self.seen:
            self.seen[place] = Seen.nothing(tap.channels, len(tap.products))
        return self.seen[place]

    def of_stage(self, tap: Tap, stage: int) -> Seen:
        """All buckets of a stage together."""
        return reduce(Seen.merged, (self.at(tap, stage, bucket) for bucket in range(self.about.buckets)))

    def of(self, tap: Tap, stages: tuple[int, ...] | None = None) -> Seen:
        """Several stages together; None: all. One engine serves them, so its ranges hold the widest."""
        chosen = range(len(self.about.stages)) if stages is None else stages
        return reduce(Seen.merged, (self.of_stage(tap, stage) for stage in chosen))

    def calls(self, stage: int) -> int:
        """How often the step ran in a stage."""
        return self.of_stage(self.about.taps[0], stage).calls if self.about.taps else 0


class Ranges:
    """What a graph that serves some stages must hold: what was seen in all of them together.

    Args:
        statistics: What was seen.
        stages: Indices of the stages; None: all.
    """

    def __init__(self, statistics: Statistics, stages: tuple[int, ...] | None = None) -> None:
        self._statistics = statistics
        self._stages = stages
        self._taps = {tap.tensor: tap for tap in statistics.about.taps}
        self._readers = {name: tap for tap in statistics.about.taps for name in tap.products}

    def of(self, tensor: str) -> Seen:
        """What was seen of a tensor.

        Raises:
            CalibrationError: It was not listened to.
        """
        if tensor not in self._taps:
            raise CalibrationError(f"the statistics know nothing of {tensor!r}; run lssgen calibrate ranges again")
        return self._statistics.of(self._taps[tensor], self._stages)

    def power(self, product: str) -> float:
        """Mean square of a product's result.

        Raises:
            CalibrationError: It was not listened to.
        """
        if product not in self._readers:
            raise CalibrationError(f"the statistics know nothing of {product!r}; run lssgen calibrate ranges again")
        tap = self._readers[product]
        seen = self.of(tap.tensor)
        return float(seen.power[tap.products.index(product)]) / max(seen.calls, 1)


def write_statistics(statistics: Statistics, path: Path) -> None:
    """Write a statistics file, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    tensors: dict[str, Array] = {}
    for stage in range(len(statistics.about.stages)):
        for bucket in range(statistics.about.buckets):
            each = [statistics.at(tap, stage, bucket) for tap in statistics.about.taps]
            if any(seen.calls for seen in each):
                tensors |= {f"{kind}.{stage}.{bucket}": value for kind, value in _packed(each).items()}
    about = msgspec.json.encode(statistics.about).decode()
    with whole_file(path) as draft:
        draft.write_bytes(save(tensors, {"lssgen": about}))


def _packed(each: list[Seen]) -> dict[str, Array]:
    """The numbers of all taps, one after another."""
    return {
        "low": np.concatenate([seen.low for seen in each]),
        "high": np.concatenate([seen.high for seen in each]),
        "squares": np.concatenate([seen.squares for seen in each]),
        "power": np.concatenate([seen.power for seen in each]),
        "counts": np.stack([seen.counts for seen in each]),
        "calls": np.asarray([seen.calls for seen in each], np.int64),
        "bad": np.asarray([seen.bad for seen in each], np.uint8),
    }


def read_statistics(path: Path) -> Statistics:
    """Read a statistics file.

    Raises:
        CalibrationError: It cannot be read, or is something else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = decode_json((file.metadata() or {}).get("lssgen", "").encode(), About)
            if len(about.stages) != len(about.steps):
                raise ValueError(f"it has {len(about.stages)} stages, and steps of {len(about.steps)}")
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Statistics(about, dict(_seen(about, tensors)))
    except OSError as error:
        raise CalibrationError(
            f"statistics {path} cannot be read ({error}); make them: lssgen calibrate ranges"
        ) from error
    except (SafetensorError, JsonError, KeyError, ValueError, IndexError) as error:
        raise CalibrationError(
            f"{path} is not a statistics file ({error}); make one: lssgen calibrate ranges BUNDLE"
        ) from error


def _seen(about: About, tensors: Mapping[str, Any]) -> Iterator[tuple[Place, Seen]]:
    ends = np.cumsum([tap.channels for tap in about.taps])[:-1]
    powers = np.cumsum([len(tap.products) for tap in about.taps])[:-1]
    for name in tensors:
        kind, stage, bucket = name.split(".")
        if kind != "calls":
            continue
        place = f"{stage}.{bucket}"
        lows, highs, squares = (np.split(tensors[f"{kind}.{place}"], ends) for kind in ("low", "high", "squares"))
        power = np.split(tensors[f"power.{place}"], powers)
        counts, calls, bad = (tensors[f"{kind}.{place}"] for kind in ("counts", "calls", "bad"))
        if counts.shape != (len(about.taps), 2, BINS):
            raise ValueError(f"counts.{place} has the shape {counts.shape}")
        for index, tap in enumerate(about.taps):
            if lows[index].shape != (tap.channels,):
                raise ValueError(f"{tap.tensor} has {len(lows[index])} channels instead of {tap.channels}")
            seen = Seen(
                lows[index].copy(),
                highs[index].copy(),
                squares[index].copy(),
                power[index].copy(),
                counts[index].copy(),
                int(calls[index]),
                bool(bad[index]),
            )
            if not seen.is_possible:
                raise ValueError(
                    f"what it says of {tap.tensor} was never seen: NaN, or a range that ends before it begins"
                )
            yield (tap.tensor, int(stage), int(bucket)), seen


def see_fits(statistics: Statistics, bundle: Bundle) -> None:
    """See that statistics are of a bundle, of its stages, whole, and of numbers that a range can be made of.

    Raises:
        CalibrationError: Says what does not fit, and what to do.
    """
    about, again = statistics.about, "run lssgen calibrate ranges for this bundle"
    step = bundle.manifest.graphs["step"]
    if about.format != FORMAT:
        raise CalibrationError(f"the statistics have format {about.format}; this lssgen reads {FORMAT}: {again}")
    if dict(about.step) != dict(step.sha256):
        raise CalibrationError(
            f"the statistics are of another bundle, made of {about.model!r} in {about.precision}; {bundle.folder} was "
            f"made of {bundle.manifest.source.model!r} in {step.precision}, and its step is another one: {again}"
        )
    if not about.finished:
        raise CalibrationError(
            f"the statistics hold {about.done} of {len(about.prompts)} prompts; run the same lssgen calibrate ranges "
            "again, which goes on where it was"
        )
    _see_stages(statistics, bundle, again)
    _see_numbers(statistics)


def _see_stages(statistics: Statistics, bundle: Bundle, again: str) -> None:
    about, cell = statistics.about, bundle.manifest.facts.cell_px
    wanted = {(height // cell, width // cell) for height, width in bundle.manifest.resolutions}
    if missing := sorted(wanted - set(about.stages)):
        raise CalibrationError(
            f"the statistics are of stages of {_sizes(about.stages, cell)} px, and the bundle has one of "
            f"{_sizes(missing, cell)} px: {again}, with --size and --min-resolution such that every stage runs"
        )
    for stage, size in enumerate(about.stages):
        if (calls := statistics.calls(stage)) < LEAST_CALLS:
            raise CalibrationError(
                f"the statistics hold {calls} steps of the stage of {_sizes([size], cell)} px, which is too few to "
                f"trust; at least {LEAST_CALLS} are needed: {again}, with more prompts or --steps"
            )


def _sizes(sizes: Any, cell: int) -> str:
    return ", ".join(f"{width * cell}x{height * cell}" for height, width in sizes)


def _see_numbers(statistics: Statistics) -> None:
    for tap in statistics.about.taps:
        for stage in range(len(statistics.about.stages)):
            seen, where = statistics.of_stage(tap, stage), f"what goes into {tap.label} in stage {stage + 1}"
            if seen.bad:
                raise CalibrationError(
                    f"{where} held NaN or infinity, so it has no range; a network that overflows in half precision "
                    "does this: export it in bf16 or fp32, and calibrate that"
                )
            if seen.peak == 0:
                raise CalibrationError(
                    f"{where} was always zero, so it has no range; weights of zeros do this: check the checkpoint, or "
                    "calibrate with prompts that reach every layer"
                )
