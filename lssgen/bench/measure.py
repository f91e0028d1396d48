"""Measuring a bundle, case by case: end to end and by component, on the device's own clock."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

from lssgen.bench.cases import PROMPT, Case, Effort, wordings
from lssgen.bench.clocks import Pace
from lssgen.bench.memory import forget_peak, peak_mib
from lssgen.bench.meter import Meter, MeteredBackend
from lssgen.bench.results import CaseResult, StageResult
from lssgen.bench.summary import Summary, summarised
from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.plan import Plan, stage_flops
from lssgen.plan.facts import ModelFacts
from lssgen.runtime import Pipeline, Preview
from lssgen.runtime.results import BatchTimes

Opened = Callable[[], Backend]
"""Makes a backend, anew for every case, so that each has its own loading."""


OnRun = Callable[[str, int, int], None]
"""Told after every run: name of the case, runs done and runs in all, warm-up included."""


def unheard(case: str, done: int, total: int) -> None:
    """An `OnRun` for those who do not care."""
    del case, done, total


@dataclass(slots=True)
class _Samples:
    """Seconds of every timed run."""

    total: list[float] = field(default_factory=list[float])
    text: list[float] = field(default_factory=list[float])
    decode: list[float] = field(default_factory=list[float])
    compute: list[float] = field(default_factory=list[float])
    enqueue: list[float] = field(default_factory=list[float])
    gaps: list[float] = field(default_factory=list[float])
    stages: list[list[float]] = field(default_factory=list[list[float]])
    steps: list[list[float]] = field(default_factory=list[list[float]])
    transitions: list[list[float]] = field(default_factory=list[list[float]])

    def add(self, times: BatchTimes, meter: Meter) -> None:
        """One run more."""
        self.total.append(times.total - times.load)
        self.text.append(times.text)
        self.decode.append(times.decode)
        self.compute.append(sum(call.compute for call in meter.log))
        self.enqueue.append(sum(call.enqueue for call in meter.log))
        self.gaps += meter.gaps()
        passages = [call.compute for call in meter.log if call.graph.startswith("transition_")]
        for index, stage in enumerate(times.stages):
            for lists in (self.stages, self.steps, self.transitions):
                if len(lists) == index:
                    lists.append([])
            self.stages[index].append(stage.total)
            self.steps[index] += stage.steps
            if index:
                self.transitions[index].append(passages[index - 1])


def measure(
    bundle: Bundle, opened: Opened, case: Case, effort: Effort, *, prompt: str = PROMPT, on_run: OnRun = unheard
) -> CaseResult:
    """Measure one case.

    Args:
        bundle: What is measured.
        opened: Makes its backend.
        case: Kind of run.
        effort: How many runs.
        prompt: Words of the prompts; every run gets them in another order, see `wordings`.
        on_run: Told of every run.

    Raises:
        PlanError: The case cannot be carried out.
        EngineError: It fails.
    """
    meter, pace, samples = Meter(), Pace(), _Samples()
    prompts = wordings(prompt, effort.warmup + effort.runs + 1)
    total = effort.warmup + effort.runs
    began = perf_counter()
    with Pipeline(bundle, MeteredBackend(opened(), meter)) as pipeline:
        first = pipeline(prompts[-1], **case.run_options)
        to_first = perf_counter() - began
        buffers = meter.tally.allocated_bytes
        for index, words in enumerate(prompts[:-1]):
            if index == effort.warmup:
                forget_peak()
            if index >= effort.warmup:
                pace.look()
            meter.forget()
            (times,) = pipeline(words, **case.run_options).times
            if index >= effort.warmup:
                samples.add(times, meter)
            on_run(case.name, index + 1, total)
        peak = peak_mib()
        preview = _first_preview(pipeline, prompts[-1], case) if len(first.plan.stages) > 1 else None
        backend = {name: str(value) for name, value in pipeline.backend.describe().items()}
    batch = first.times[0].pictures
    return CaseResult(
        name=case.name,
        options=case.options,
        batch=batch,
        request_latency_ms=summarised(samples.total, 1e3),
        image_latency_ms=summarised(samples.total, 1e3 / batch),
        image_throughput=summarised([batch / seconds for seconds in samples.total]),
        time_to_first_image_ms=1e3 * to_first,
        time_to_first_preview_ms=preview,
        load_ms=1e3 * first.times[0].load,
        text_ms=summarised(samples.text, 1e3),
        decode_ms=summarised(samples.decode, 1e3),
        gpu_compute_ms=summarised(samples.compute, 1e3),
        enqueue_ms=summarised(samples.enqueue, 1e3),
        host_gap_us=summarised(samples.gaps, 1e6) if samples.gaps else None,
        stages=tuple(_stages(first.plan, bundle.manifest.facts, samples)),
        latencies_ms=tuple(1e3 * seconds for seconds in samples.total),
        peak_memory_mib=peak,
        buffers_mib=buffers / 2**20,
        complaints=pace.complaints(),
        backend=backend,
    )


def measure_all(
    bundle: Bundle,
    opened: Callable[[Case], Backend],
    cases: Sequence[Case],
    effort: Effort,
    *,
    known: Mapping[str, CaseResult],
    prompt: str = PROMPT,
    on_run: OnRun = unheard,
) -> Iterator[CaseResult]:
    """Results of several cases, one after another; those that are known are not measured again."""
    for case in cases:
        found = known.get(case.name)
        # A file knows options as JSON has them: a tuple comes back as a list.
        again = found is None or found.options != dict(case.options) or len(found.latencies_ms) < effort.runs
        made = partial(opened, case)
        yield measure(bundle, made, case, effort, prompt=prompt, on_run=on_run) if again or not found else found


def _first_preview(pipeline: Pipeline, prompt: str, case: Case) -> float:
    """Milliseconds from a prompt to the picture of its first stage. The run goes on, and is not timed."""
    found: list[float] = []
    for _ in range(3):  # the first decodes at a size that nothing was bound for
        began = perf_counter()
        shown: list[float] = []

        def hear(preview: Preview, began: float = began, shown: list[float] = shown) -> None:
            if preview.stage == 0:
                shown.append(perf_counter() - began)

        pipeline(prompt, on_preview=hear, **case.run_options)
        found.append(1e3 * shown[0])
    return min(found[1:])


def _stages(plan: Plan, facts: ModelFacts, samples: _Samples) -> Iterator[StageResult]:
    for index, stage in enumerate(plan.stages):
        cells = stage.height * stage.width
        yield StageResult(
            width_px=stage.width * plan.cell_px,
            height_px=stage.height * plan.cell_px,
            steps=len(stage.steps),
            cells=cells,
            tokens=(stage.height // facts.patch) * (stage.width // facts.patch),
            tflop=stage_flops(stage, facts) / 1e12,
            step_ms=summarised(samples.steps[index], 1e3),
            stage_ms=summarised(samples.stages[index], 1e3),
            transition_ms=_summary(samples.transitions[index]),
        )


def _summary(seconds: Sequence[float]) -> Summary | None:
    return summarised(seconds, 1e3) if seconds else None
