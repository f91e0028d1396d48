"""What was measured, as a file: records of cases, their environment, and reading them back with care."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from lssgen.bench.environment import Environment
from lssgen.bench.records import read_record, write_record
from lssgen.bench.summary import Count, Measure, Summary

FORMAT = 3
"""Changes when a reader would misunderstand an older file."""


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a case.

    Attributes:
        width_px, height_px, steps: Size of its pictures and number of its steps.
        cells, tokens: Latent cells, and tokens of the network's sequence (patches of cells).
        tflop: Arithmetic of the stage for one picture, in 10^12 FLOP, every guidance branch counted.
        step_ms: One step on the device.
        stage_ms: The whole stage.
        transition_ms: Way from the stage before, on the device; None for the first.
    """

    width_px: Count
    height_px: Count
    steps: Count
    cells: Count
    tokens: Count
    tflop: Annotated[float, msgspec.Meta(gt=0)]
    step_ms: Summary
    stage_ms: Summary
    transition_ms: Summary | None = None


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One case. Times are milliseconds.

    Attributes:
        name: Words that tell it from others.
        options: Options of the run.
        batch: Pictures painted together.
        request_latency_ms: Time from the prompt to the pictures of a batch, loading apart.
        image_latency_ms: The same for one picture of the batch.
        image_throughput: Pictures a second.
        time_to_first_image_ms: Time from opening the bundle to the first picture: loading, building what is missing and
            the first, cold run.
        time_to_first_preview_ms: Time from the prompt to the picture of the first stage; None where there is one stage.
        load_ms: Opening the engines, in the first run.
        text_ms, decode_ms: Text encoders and decoder of a batch.
        gpu_compute_ms: Time of all engine calls on the device.
        enqueue_ms: Time that the host took to ask for them. On a device that makes its caller wait, the same.
        host_gap_us: Microseconds between the end of a step on the device and the beginning of the next.
        stages: Stages, smallest first.
        latencies_ms: Every timed run, in order.
        peak_memory_mib: Most memory of the process during the timed runs, in MiB.
        buffers_mib: Memory of the run's own buffers on the device, in MiB.
        complaints: Sentences about what was not steady.
        backend: Facts that the engine told about itself after the runs: what computes each component, hashes of
            compiled engines.
    """

    name: str
    options: Mapping[str, object]
    batch: Count
    request_latency_ms: Summary
    image_latency_ms: Summary
    image_throughput: Summary
    time_to_first_image_ms: Measure
    time_to_first_preview_ms: Measure | None
    load_ms: Measure
    text_ms: Summary
    decode_ms: Summary
    gpu_compute_ms: Summary
    enqueue_ms: Summary
    host_gap_us: Summary | None
    stages: Annotated[tuple[StageResult, ...], msgspec.Meta(min_length=1)]
    latencies_ms: tuple[float, ...]
    peak_memory_mib: float
    buffers_mib: float
    complaints: tuple[str, ...] = ()
    backend: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        if self.request_latency_ms.p50 <= 0:  # ratios are taken of it; read from a file, this is one that is damaged
            raise ValueError(f"the median of {self.name!r} is {self.request_latency_ms.p50:g} ms")

    @property
    def transition_ms(self) -> float:
        """Medians of all transitions together."""
        return sum(stage.transition_ms.p50 for stage in self.stages if stage.transition_ms is not None)


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A whole measurement on disk.

    Attributes:
        format: `FORMAT` of the lssgen that wrote it.
        bundle: "name", "folder" and "manifest_sha256" of the bundle.
        engine: Name of the engine; of several, all of them.
        prompt: Words of the prompts.
        environment: Machine and software.
        cases: Cases that were finished.
    """

    format: int = FORMAT
    bundle: Mapping[str, str]
    engine: str
    prompt: str
    environment: Environment
    cases: tuple[CaseResult, ...] = ()


def write_result(result: BenchResult, path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        BenchError: The file cannot be written.
    """
    write_record(result, path)


def read_result(path: Path) -> BenchResult:
    """Read what `write_result` wrote.

    Raises:
        BenchError: It is missing, damaged, or of another format.
    """
    make = f"make one with lssgen bench BUNDLE --output {path.name}"
    return read_record(path, BenchResult, FORMAT, make=make, again="measure again with lssgen bench")
