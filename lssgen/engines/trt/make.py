"""One engine, made in a draft folder of the cache: compiled, or a copy of another one with its weights exchanged."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from lssgen.engines.cuda import Device
from lssgen.engines.trt.cache import PLAN, REPORT, Cache, Entry, key_of
from lssgen.engines.trt.child import compile_apart
from lssgen.engines.trt.exam import Exam
from lssgen.engines.trt.job import Facts, Job
from lssgen.engines.trt.library import Library
from lssgen.engines.trt.need import Need
from lssgen.engines.trt.options import Bounds
from lssgen.engines.trt.progress import Tell
from lssgen.engines.trt.refit import allowed, donors, fixed_weights, refit, structure_of
from lssgen.engines.trt.report import Report, check
from lssgen.errors import EngineError
from lssgen.manifest import Graph

_LOG = logging.getLogger("lssgen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One engine to make.

    Attributes:
        library: Library that makes it.
        device: GPU at hand; None where none is needed.
        need: Demands on the engine.
        graph: Entry of the graph in the bundle's manifest.
        job: Order for the compiler.
        bounds: Limits that the engine must keep.
        folder: Folder of the engines.
    """

    library: Library
    device: Device | None
    need: Need
    graph: Graph
    job: Job
    bounds: Bounds
    folder: Path


def make(task: Task, here: Sequence[Entry], tell: Tell) -> Entry:
    """Make an engine; if another process is making it, wait for that one's.

    Args:
        task: The engine.
        here: Engines that exist; where weights are to be exchangeable, one of them may serve.
        tell: Hears of a build's progress.

    Raises:
        BackendError: A package is missing.
        BuildError: The graph was refused, the result breaks a bound, or it cannot be written. Nothing is left.
    """
    cache, key = Cache(task.folder), key_of(task.need)
    with cache.building(key):
        # Asked again under the lock: whoever held it before may have made it.
        if cache.get(key) is None:
            began = perf_counter()
            with cache.draft(key) as draft:
                report = _refitted(task, here, draft, tell) if task.job.options.refit else _built(task, draft, tell)
                # Within the draft, which goes where this raises: an engine beyond the bounds is never found later.
                check(report, task.bounds)
                report = replace(report, seconds=perf_counter() - began)
                (draft / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    made = cache.get(key)
    assert made is not None, "it was renamed into its place"
    return made


def _built(task: Task, draft: Path, tell: Tell) -> Report:
    need = task.need
    _LOG.info("building %s for %s, once; it is kept in %s", need.graph, ", ".join(need.targets), task.folder)
    return _report(task, compile_apart(task.job, draft / PLAN, tell))


def _refitted(task: Task, here: Sequence[Entry], draft: Path, tell: Tell) -> Report:
    """A copy of an engine that differs in its weights only; where that goes wrong, a build that was examined."""
    assert task.device is not None, "whoever asks for exchangeable weights has seen that there is one"
    exam = Exam(task.library, task.device, task.job, task.graph.precision)
    fitting = donors(task.need, structure_of(task.job.onnx), here)
    # The last of them was used last, and so is the least likely to be pruned meanwhile.
    copied = _copied(task, task.device, exam, fitting[-1], draft) if fitting else None
    return copied or _examined(task, task.device, exam, draft, tell)


def _copied(task: Task, device: Device, exam: Exam, donor: Entry, draft: Path) -> Report | None:
    name = task.need.graph
    _LOG.info("refitting %s from engine %s; it is kept in %s", name, donor.key, task.folder)
    try:
        size, digest = _write(draft / PLAN, refit(task.library, device, donor, task.job.onnx))
        profile = donor.report.profiles.index(task.need.profiles[0])
        probe = exam.take(draft / PLAN, profile, allowed(donor.report.probes[0]))
    except EngineError as error:
        _LOG.warning(
            "%s, refitted from engine %s, is thrown away and will be built from scratch: %s", name, donor.key, error
        )
        return None
    return replace(
        donor.report,
        content=task.need.content,
        refitted_from=donor.key,
        probes=(probe,),
        plan_bytes=size,
        plan_sha256=digest,
    )


def _examined(task: Task, device: Device, exam: Exam, draft: Path, tell: Tell) -> Report:
    """Built such that its weights can be exchanged, if it computes what it should then; else without."""
    report, onnx = _built(task, draft, tell), task.job.onnx
    try:
        probe = exam.take(draft / PLAN, 0)
        fixed = fixed_weights(task.library, device, draft / PLAN, onnx)
    except EngineError as error:
        _LOG.warning("%s, built with --refit, is thrown away and built again without: %s", task.need.graph, error)
    else:
        return replace(report, structure=structure_of(onnx), fixed_weights=fixed, probes=(probe,))
    # Its report still says what was asked for, or the next run would try, and build, and fail again.
    plain = replace(task, job=replace(task.job, options=replace(task.job.options, refit=False)))
    return _built(plain, draft, tell)


def _report(task: Task, facts: Facts) -> Report:
    need, graph = task.need, task.graph
    return Report(
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
        plan_bytes=facts.plan_bytes,
        plan_sha256=facts.plan_sha256,
        weight_bytes=facts.weight_bytes,
        activation_bytes=facts.activation_bytes,
        attentions=facts.attentions,
        unfused=facts.unfused,
        largest=facts.largest,
        coded=facts.coded,
    )


def _write(file: Path, plan: Any) -> tuple[int, str]:
    view = memoryview(plan)
    file.write_bytes(view)
    return view.nbytes, hashlib.sha256(view).hexdigest()
