"""The gate that needs no clock: what a run asks of engines, devices and the host, line by line against a baseline.

Engine calls, copies and allocations come from a run on engines that do nothing; arithmetic and bytes from the plan.
They are whole numbers that do not depend on the machine, so any change is a change of the code, and is refused until
somebody updates the baseline on purpose. Instructions are counted where the machine can. The host's own time is a ratio
to the copies that a step cannot do without.
"""

import hashlib
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from types import FrameType
from typing import Any

import msgspec
import numpy as np

from lssgen.bench.cases import PROMPT, wordings
from lssgen.bench.idle import IdleBackend
from lssgen.bench.instructions import counted
from lssgen.bench.meter import Meter, MeteredBackend
from lssgen.bench.records import read_record, write_record
from lssgen.bundle import Bundle
from lssgen.errors import MismatchError
from lssgen.plan import ModelFacts, Plan, stage_flops
from lssgen.runtime import Options, Pipeline

FORMAT = 1
"""Changes when a reader would misunderstand an older baseline."""

RATIO_BOUND = 1.5
"""Times that a ratio of times may be what the baseline has. On a shared machine the same code gives up to 1.2."""

INSTRUCTIONS_BOUND = 1.02
"""Times that the instructions of a run may be those of the baseline: hashes and addresses differ from run to run."""

Lines = dict[str, int | str]


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What a run asks for.

    Attributes:
        format: `FORMAT` of the lssgen that wrote it.
        name: Model that it is of.
        key: Hash of its graphs and of the run's options; "" for a plan alone.
        conditions: Versions that `host` belongs to.
        exact: Whole numbers and words that any machine gives.
        host: Whole numbers that depend on the versions in `conditions`.
        instructions: Instructions of a run in user space, held to `INSTRUCTIONS_BOUND` under the same `conditions`;
            None where the machine does not count them.
        ratios: Ratios of times, held to `RATIO_BOUND`.
    """

    format: int = FORMAT
    name: str
    key: str = ""
    conditions: Mapping[str, str] = {}
    exact: Mapping[str, int | str]
    host: Mapping[str, int | str] = {}
    instructions: int | None = None
    ratios: Mapping[str, float] = {}


def plan_lines(plan: Plan, facts: ModelFacts) -> Lines:
    """What a plan asks of the network, stage by stage: calls, passes, arithmetic, and bytes of latents that move."""
    lines: Lines = {"stages": len(plan.stages), "scaling space": plan.scaling_space}
    for number, stage in enumerate(plan.stages, start=1):
        cells = stage.height * stage.width
        state = 4 * facts.channels * cells * (1 + stage.history)  # float32 latent, and the estimates it remembers
        lines |= {
            f"stage {number} pixels": f"{stage.width * plan.cell_px}x{stage.height * plan.cell_px}",
            f"stage {number} network calls": len(stage.steps),
            f"stage {number} network passes": sum(len(step.guidance) for step in stage.steps),
            f"stage {number} MFLOP": round(stage_flops(stage, facts) / 1e6),
            f"stage {number} latent bytes read and written": 2 * state * len(stage.steps),
        }
    return lines


def baseline_of_plan(plan: Plan, facts: ModelFacts) -> Baseline:
    """The baseline of a plan alone, for models that are not there."""
    return Baseline(name=facts.name, exact=plan_lines(plan, facts))


def baseline_of_bundle(bundle: Bundle, options: Options, *, prompt: str = PROMPT) -> Baseline:
    """The baseline of a run of a bundle, on engines that do nothing.

    Raises:
        PlanError: The run cannot be carried out.
    """
    meter = Meter(timed=False)
    with Pipeline(bundle, MeteredBackend(IdleBackend(), meter)) as pipeline:
        plan = pipeline.plan(**options)
        first, second, third, fourth = wordings(prompt, 4)
        exact = plan_lines(plan, bundle.manifest.facts) | _weights(bundle, plan)
        pipeline(first, **options)
        exact |= _counted(meter, "first run")
        meter.forget()
        pipeline(second, **options)
        exact |= _counted(meter, "later runs")
        calls = _python_calls(lambda: pipeline(third, **options))
        instructions = counted(lambda: pipeline(fourth, **options))
        ratio = _host_ratio(pipeline, options, plan, prompt)
    return Baseline(
        name=bundle.manifest.facts.name,
        key=_key(bundle, options),
        conditions={
            "python": _series(platform.python_version()),
            "numpy": _series(np.__version__),
            "architecture": platform.machine(),
        },
        exact=exact,
        host={"Python and C functions called by a run": calls},
        instructions=instructions,
        ratios={"host time a step over its bare copies": round(ratio, 2)},
    )


def changes(now: Baseline, before: Baseline) -> list[str]:
    """Lines that differ, in words; empty where the gate is passed.

    Raises:
        MismatchError: The baseline is of another model, bundle or run.
    """
    if (now.name, now.key) != (before.name, before.key):
        raise MismatchError(
            f"the baseline is of {before.name} ({before.key[:12] or 'plan'}) and this is {now.name} "
            f"({now.key[:12] or 'plan'}): another bundle or other options; name its own baseline, or make this one "
            "the baseline with --update"
        )
    found = _changed(now.exact, before.exact)
    if now.conditions == before.conditions:
        found += _changed(now.host, before.host)
        if now.instructions and before.instructions and now.instructions > INSTRUCTIONS_BOUND * before.instructions:
            found.append(f"instructions of a run were {before.instructions} and are {now.instructions}")
    for name, value in before.ratios.items():
        if name not in now.ratios:
            found.append(f"{name} was {value:g} and is not there")
        elif now.ratios[name] > RATIO_BOUND * value:
            found.append(f"{name} was {value:g} and is {now.ratios[name]:g}, more than {RATIO_BOUND:g} times as much")
    return found


def not_compared(now: Baseline, before: Baseline) -> list[str]:
    """Lines of the baseline that say nothing here, in words, so that a passed gate is not taken for more than it is."""
    said = [f"{name} is not compared: the baseline has none" for name in now.ratios if name not in before.ratios]
    if before.host and now.conditions != before.conditions:
        ours, theirs = (" ".join(f"{key} {value}" for key, value in one.conditions.items()) for one in (now, before))
        said.append(
            f"functions and instructions of the host are not compared: they are those of {theirs}, and this is {ours}"
        )
    elif before.instructions and not now.instructions:
        said.append("instructions are not compared: this machine does not count them")
    elif now.instructions and not before.instructions:
        said.append("instructions are not compared: the baseline was made where they are not counted")
    return said


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write it, a line a number.

    Raises:
        BenchError: The file cannot be written.
    """
    write_record(baseline, path)


def read_baseline(path: Path) -> Baseline:
    """Read what `write_baseline` wrote.

    Raises:
        BenchError: It is missing or damaged.
        MismatchError: It has another format.
    """
    again = "make it anew with --update"
    return read_record(path, Baseline, FORMAT, make="make it with --update", again=again, other=MismatchError)


def _counted(meter: Meter, when: str) -> Lines:
    tally = meter.tally
    lines: Lines = {f"{when}: calls of {name}": count for name, count in sorted(tally.calls.items())}
    lines |= {
        f"{when}: copies to the device": tally.uploads,
        f"{when}: bytes to the device": tally.uploaded_bytes,
        f"{when}: copies to the host": tally.downloads,
        f"{when}: bytes to the host": tally.downloaded_bytes,
        f"{when}: allocations": tally.allocations,
        f"{when}: bytes allocated": tally.allocated_bytes,
    }
    return lines


def _weights(bundle: Bundle, plan: Plan) -> Lines:
    """Bytes of weights that the network reads if it reads each once a call."""
    size = bundle.stored_bytes("step")
    return {f"stage {n} weight bytes": size * len(stage.steps) for n, stage in enumerate(plan.stages, start=1)}


def _python_calls(work: Callable[[], object]) -> int:
    """Functions that are called, Python's and C's: host instructions that any machine can count."""
    count = 0

    def hear(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        del frame, argument
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(hear)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def _host_ratio(pipeline: Pipeline, options: Options, plan: Plan, prompt: str) -> float:
    """Host time of a step over the time of two bare NumPy copies of its size, both on engines that do nothing."""
    rows = [np.zeros((1, 8), np.float32) for _ in range(4)]

    def bare() -> float:
        began = perf_counter()
        for _ in range(1000):
            np.copyto(rows[0], rows[1])
            np.copyto(rows[2], rows[3])
        return (perf_counter() - began) / 1000

    def step() -> float:
        (times,) = pipeline(prompt, **options).times
        steps = [step for stage in times.stages for step in stage.steps]
        assert len(steps) == plan.evaluations
        return median(steps)

    pairs = [(step(), bare()) for _ in range(10)]
    return min(one for one, _ in pairs) / min(other for _, other in pairs)  # other work only ever adds


def _changed(now: Mapping[str, int | str], before: Mapping[str, int | str]) -> list[str]:
    return [
        f"{name} was {before.get(name, 'not there')} and is {now.get(name, 'not there')}"
        for name in dict.fromkeys((*before, *now))
        if now.get(name) != before.get(name)
    ]


def _key(bundle: Bundle, options: Options) -> str:
    graphs = sorted((name, graph.key) for name, graph in bundle.manifest.graphs.items())
    return hashlib.sha256(repr((graphs, sorted(options.items()))).encode()).hexdigest()


def _series(version: str) -> str:
    """ "3.11" of "3.11.7"."""
    return ".".join(version.split(".")[:2])
