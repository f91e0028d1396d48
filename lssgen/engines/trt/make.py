"""One engine with its report: compiled, or a copy of another one with its weights exchanged."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lssgen.bundle import Graph
from lssgen.engines.trt.cache import Entry
from lssgen.engines.trt.compiler import Job, build_plan
from lssgen.engines.trt.exam import Exam
from lssgen.engines.trt.fit import Need
from lssgen.engines.trt.library import Library
from lssgen.engines.trt.refit import allowed, donors, fixed_weights, refit, structure_of
from lssgen.engines.trt.report import Report
from lssgen.errors import EngineError

_LOG = logging.getLogger("lssgen")
Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One engine to make.

    Attributes:
        library: That makes it.
        need: What it must be.
        graph: Of the bundle.
        job: What to compile.
        folder: Where it will be kept, for messages.
    """

    library: Library
    need: Need
    graph: Graph
    job: Job
    folder: Path


def make(task: Task, here: Sequence[Entry], tell: Tell) -> tuple[Any, Report]:
    """A plan and its report, which lacks what the file will say: time, size and hash.

    Args:
        here: Engines that exist; where weights are to be exchangeable, one of them may serve.
        tell: Hears of a build's progress.

    Raises:
        BackendError: The `onnx` package is missing.
        BuildError: The graph was refused.
    """
    if not task.job.options.refit:
        return _build(task, tell)
    exam = Exam(task.library, task.job, task.graph.precision)
    return _refit(task, exam, here) or _build_refittable(task, exam, tell)


def _refit(task: Task, exam: Exam, here: Sequence[Entry]) -> tuple[Any, Report] | None:
    """From the engine that was used last of those that differ in weights only."""
    onnx, name = task.job.onnx, task.need.graph
    fitting = donors(task.need, structure_of(onnx), here)
    if not fitting:
        return None
    donor = fitting[-1]
    _LOG.info("refitting %s from engine %s; it is kept in %s", name, donor.key, task.folder)
    try:
        plan = refit(task.library, donor, onnx)
        profile = donor.report.profiles.index(task.need.profiles[0])
        probe = exam.take(plan, profile, allowed(donor.report.probes[0]))
    except EngineError as error:
        _LOG.warning(
            "%s, refitted from engine %s, is thrown away and will be built from scratch: %s", name, donor.key, error
        )
        return None
    return plan, replace(donor.report, content=task.need.content, refitted_from=donor.key, probes=(probe,))


def _build_refittable(task: Task, exam: Exam, tell: Tell) -> tuple[Any, Report]:
    plan, report = _build(task, tell)
    onnx = task.job.onnx
    try:
        probe = exam.take(plan, 0)
        fixed = fixed_weights(task.library, plan, onnx)
    except EngineError as error:
        _LOG.warning("%s, built with --refit, is thrown away and built again without: %s", task.need.graph, error)
    else:
        return plan, replace(report, structure=structure_of(onnx), fixed_weights=fixed, probes=(probe,))
    del plan  # here, where the error holds no engine on the device any more
    return _build(replace(task, job=replace(task.job, options=replace(task.job.options, refit=False))), tell)


def _build(task: Task, tell: Tell) -> tuple[Any, Report]:
    need, graph = task.need, task.graph
    _LOG.info("building %s for %s, once; it is kept in %s", need.graph, ", ".join(need.targets), task.folder)
    built = build_plan(task.library, task.job, tell)
    findings = built.findings
    return built.plan, Report(
        graph=need.graph,
        content=need.content,
        backend=need.backend,
        version=need.version,
        targets=need.targets,
        precision=graph.precision,
        options=need.options,
        profiles=need.profiles,
        inputs=graph.inputs,
        outputs=graph.outputs,
        seconds=0.0,
        plan_bytes=0,
        plan_sha256="",
        weight_bytes=findings.weight_bytes,
        activation_bytes=findings.activation_bytes,
        attentions=len(built.attentions),
        unfused=findings.unfused(built.attentions, len(need.profiles)),
        largest=findings.largest,
    )
