"""The engines of a bundle, ahead of time or when a run finds one missing: needed -> found or made -> checked.

needs_of       what every graph's engine must be
_found         one that is there: in the bundle, or in the folder of the engines
make           else a new one, in a process of its own (`lssgen.engines.trt.make`)
check          whichever it is, it keeps the bounds
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.engines.base import see_graph
from lssgen.engines.cuda import Device
from lssgen.engines.demand import Demand, Profile, profiles_of
from lssgen.engines.trt.cache import PLAN, Cache, Entry, file_name, touch
from lssgen.engines.trt.job import Job
from lssgen.engines.trt.library import Flavour, Library, require_library
from lssgen.engines.trt.make import Task, make
from lssgen.engines.trt.need import Need, arranged, misfits
from lssgen.engines.trt.options import Bounds, BuildOptions
from lssgen.engines.trt.progress import Tell, quiet
from lssgen.engines.trt.report import check, check_quantised
from lssgen.engines.trt.targets import normal, rtx_targets, see_format, trt_target
from lssgen.errors import BackendError, BuildError, StaleEngineError
from lssgen.manifest import Graph
from lssgen.verification import first_changed

_LOG = logging.getLogger("lssgen")

Sizes = Mapping[str, Iterable[Profile]]
"""Profiles that engines must hold, by graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to build, and where to.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        targets: Architectures, "sm89", ...; none stands for every target that can (TensorRT-RTX) or the GPU at hand
            (TensorRT).
        demand: Graphs, batches, guidance branches and resolutions.
        options: Choices that change an engine.
        bounds: Limits that an engine must keep.
        folder: Folder of the engines.
        device_id: Number of the GPU that TensorRT builds on.
    """

    flavour: Flavour
    targets: tuple[str, ...] = ()
    demand: Demand = field(default_factory=Demand)
    options: BuildOptions = field(default_factory=BuildOptions)
    bounds: Bounds = field(default_factory=Bounds)
    folder: Path = field(default_factory=paths.engines)
    device_id: int = 0


def build_engines(bundle: Bundle, order: Order, tell: Tell = quiet) -> dict[str, Entry]:
    """Build an engine of every graph of a bundle that is demanded, or find those that are built already.

    Returns:
        The engines, by graph.

    Raises:
        BackendError: The library is missing, or has no GPU where it needs one.
        BuildError: A target cannot hold the precision, the graph was refused, the result breaks a bound, or there is
            no room for it. Engines that are finished stay.
        BundleError: The bundle has no such graph.
        StaleEngineError: Nothing can be built here, and the engines that are here do not fit; says why.
    """
    for graph in order.demand.graphs:
        see_graph(bundle, graph)
    return engines_for(bundle, profiles_of(bundle.manifest, order.demand), order, tell)


def engines_for(bundle: Bundle, sizes: Sizes, order: Order, tell: Tell = quiet) -> dict[str, Entry]:
    """As `build_engines`, for profiles in place of the order's demand."""
    library = require_library(order.flavour)
    gpu = _gpu_at_hand(order)
    # Engines that came with a bundle first: whoever shipped them meant them to be used.
    here = [*Cache(bundle.folder / "engines").entries(), *Cache(order.folder).entries()]
    engines: dict[str, Entry] = {}
    for need in needs_of(bundle, sizes, library, order, gpu):
        entry = _found(need, here) or _made(bundle, need, library, order, gpu, here, tell)
        # Of those that were found too: they may have been built under other bounds.
        check(entry.report, order.bounds)
        check_quantised(entry.report, bundle.manifest.graphs[need.graph].quantisation)
        touch(entry)
        engines[need.graph] = entry
    return engines


def needs_of(bundle: Bundle, sizes: Sizes, library: Library, order: Order, gpu: Device | None) -> list[Need]:
    """The engines of a bundle, as facts.

    Raises:
        BuildError: A target cannot be built for here, or cannot hold a graph's precision.
    """
    graphs = bundle.manifest.graphs
    return [
        Need(
            graph=name,
            content=content_of(graphs[name]),
            backend=library.flavour,
            version=library.version,
            targets=targets_of(order, graphs[name], gpu.target if gpu else ""),
            options=asdict(order.options),
            profiles=arranged(profiles),
        )
        for name, profiles in sizes.items()
    ]


def content_of(graph: Graph) -> str:
    """Hash of a graph and its weights, from the hashes that the export wrote down."""
    # Without names: the same files under others, as in a bundle made again, make the same engine.
    return hashlib.sha256("".join(sorted(graph.sha256.values())).encode()).hexdigest()


def targets_of(order: Order, graph: Graph, here: str) -> tuple[str, ...]:
    """The targets of a graph's engine; `here` is the GPU at hand, where the build needs it.

    Raises:
        BuildError: A target that cannot be built for here, or cannot hold the graph's precision.
    """
    number_format = graph.quantisation.format if graph.quantisation else None
    if order.flavour == "tensorrt-rtx":
        named = see_format(order.targets, number_format, rtx=True) if number_format else order.targets
        targets = rtx_targets(named, graph.precision)
        if order.options.refit and here not in targets:
            raise BuildError(
                f"with --refit every engine is run before it counts, and the GPU of this machine, {here}, is none of "
                f"{', '.join(targets)}; add --target {here} where TensorRT-RTX builds for it, or leave --refit out"
            )
        return targets
    if {normal(target) for target in order.targets} - {here}:
        raise BuildError(
            f"TensorRT builds for the GPU of this machine, {here}, and not for {', '.join(order.targets)}; "
            "build there, or use --engine tensorrt-rtx, which builds for several GPUs without having one"
        )
    if number_format:
        see_format((here,), number_format, rtx=False)
    return (trt_target(here, graph.precision),)


def _gpu_at_hand(order: Order) -> Device | None:
    """The GPU, where the build needs one: TensorRT measures on it, and what can be refitted is run before it counts.

    Raises:
        BackendError: It is needed, and there is none.
    """
    if order.flavour != "tensorrt" and not order.options.refit:
        return None
    try:
        return Device(order.device_id)
    except BackendError as error:
        if order.flavour == "tensorrt":
            raise
        raise BackendError(
            f"engines with exchangeable weights are not built ahead of time: TensorRT-RTX asks the GPU's driver, and "
            f"every such engine is run before it counts. Here, {error}. Leave --refit out, or build on the GPU"
        ) from error


def _found(need: Need, here: Sequence[Entry]) -> Entry | None:
    """The smallest engine that serves and is what was built. One that is not goes, where it may be removed."""
    fits = [entry for entry in here if not misfits(need, entry.report)]
    for entry in sorted(fits, key=lambda entry: len(entry.report.profiles)):
        if not first_changed(entry.folder, {PLAN: entry.report.plan_sha256}):
            return entry
        _LOG.warning("%s is damaged: it is not what was built, and is not used", entry.plan)
        with suppress(BuildError):  # in a folder that one may only read it stays
            Cache(entry.folder.parent).remove(entry.key)
    return None


def _made(
    bundle: Bundle, need: Need, library: Library, order: Order, gpu: Device | None, here: Sequence[Entry], tell: Tell
) -> Entry:
    graph = bundle.manifest.graphs[need.graph]
    job = Job(
        flavour=order.flavour,
        name=need.graph,
        onnx=bundle.path(graph.file),
        inputs=graph.inputs,
        profiles=need.profiles,
        targets=need.targets,
        options=order.options,
        timings=_timings_file(order, library, gpu),
        device_id=gpu.index if gpu else None,
    )
    task = Task(library=library, device=gpu, need=need, graph=graph, job=job, bounds=order.bounds, folder=order.folder)
    try:
        return make(task, here, tell)
    except BackendError as error:
        # With engines of this graph at hand, the question is why they do not fit; without, why none can be built.
        near = [entry.report for entry in here if entry.report.graph == need.graph]
        if not near:
            raise
        why = "; ".join(f"one {misfits(need, report)}" for report in near)
        raise StaleEngineError(
            f"no engine of {need.graph!r} fits: {why}. A new one cannot be built: {error}"
        ) from error


def _timings_file(order: Order, library: Library, gpu: Device | None) -> Path | None:
    """Where TensorRT's measurements on the GPU at hand are kept; TensorRT-RTX measures nothing when it builds."""
    if order.flavour != "tensorrt" or gpu is None:
        return None
    return order.folder / f"{file_name('timings', library.version, gpu.name)}.cache"
