"""Compile every graph of a bundle: what export does ahead of time, and a run when it finds an engine missing."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from lssgen import paths
from lssgen.bundle import Bundle, Graph
from lssgen.engines.cuda import Device
from lssgen.engines.demand import Demand, profiles_of
from lssgen.engines.trt.cache import Cache, Entry, file_name, key_of
from lssgen.engines.trt.compiler import BuildOptions, Job
from lssgen.engines.trt.fit import Need, misfits
from lssgen.engines.trt.library import Flavour, Library, open_library
from lssgen.engines.trt.make import Task, make
from lssgen.engines.trt.report import Bounds, Report, check
from lssgen.engines.trt.targets import normal, rtx_targets, trt_target
from lssgen.errors import BackendError, BuildError, StaleEngineError

Tell = Callable[[str, str, float], None]
"""Called with the graph, the phase of its build and the share of it that is done, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to build, and where to.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        targets: "sm89", ...; none stands for every target that can (TensorRT-RTX) or the GPU at hand (TensorRT).
        demand: Batches, guidance branches and resolutions.
        options: What else changes an engine.
        bounds: What an engine may be.
        folder: Of the engines.
        device_id: The GPU that TensorRT builds on.
    """

    flavour: Flavour
    targets: tuple[str, ...] = ()
    demand: Demand = field(default_factory=Demand)
    options: BuildOptions = field(default_factory=BuildOptions)
    bounds: Bounds = field(default_factory=Bounds)
    folder: Path = field(default_factory=paths.engines)
    device_id: int = 0


def quiet(graph: str, phase: str, share: float) -> None:
    """A `Tell` that does nothing."""
    del graph, phase, share


@contextmanager
def progress_bar() -> Generator[Tell]:
    """A `Tell` that shows a bar, on a terminal."""
    with tqdm(total=100, disable=None, leave=False, bar_format="{desc} {percentage:3.0f} % |{bar}|") as bar:

        def tell(graph: str, phase: str, share: float) -> None:
            bar.set_description_str(f"building {graph}: {phase}", refresh=False)
            bar.update(100 * share - bar.n)

        yield tell


def build_engines(bundle: Bundle, order: Order, tell: Tell = quiet) -> dict[str, Entry]:
    """Build an engine of every graph of a bundle, or find those that are built already.

    Returns:
        The engines, by graph.

    Raises:
        BackendError: The library is missing, or has no GPU where it needs one.
        BuildError: A target cannot hold the precision, the graph was refused, the result breaks a bound, or there is
            no room for it. Engines that are finished stay.
        StaleEngineError: Nothing can be built here, and the engines that are here do not fit; says why.
    """
    library = open_library(order.flavour)
    needs = needs_of(bundle, library, order)
    here = [*Cache(bundle.folder / "engines").entries(), *Cache(order.folder).entries()]
    return {need.graph: _found(need, here) or _built(library, bundle, need, order, here, tell) for need in needs}


def needs_of(bundle: Bundle, library: Library, order: Order) -> list[Need]:
    """The engines of a bundle, as facts.

    Raises:
        BackendError: TensorRT builds for the GPU at hand, and there is none.
        BuildError: A target cannot hold the precision, a resolution does not fit the model, or TensorRT-RTX is asked
            for what it does not have.
    """
    if order.flavour == "tensorrt-rtx" and order.options.weight_streaming:
        raise BuildError(
            "TensorRT-RTX does not stream weights during a run; leave --weight-streaming out, and where memory is "
            "short run with --low-memory, which moves whole networks"
        )
    here = _gpu_at_hand(order) if _needs_gpu(order) else ""
    return [
        Need(
            graph=name,
            content=content_of(bundle.manifest.graphs[name]),
            backend=library.flavour,
            version=library.version,
            targets=targets_of(order, bundle.manifest.graphs[name], here),
            options=asdict(order.options),
            profiles=profiles,
        )
        for name, profiles in profiles_of(bundle.manifest, order.demand).items()
    ]


def _needs_gpu(order: Order) -> bool:
    """TensorRT measures on one. Engines with exchangeable weights are run before they count."""
    return order.flavour == "tensorrt" or order.options.refit


def _gpu_at_hand(order: Order) -> str:
    """Its target, where the build needs one."""
    try:
        return Device(order.device_id).target
    except BackendError as error:
        if order.flavour == "tensorrt":
            raise
        raise BackendError(
            f"engines with exchangeable weights are not built ahead of time: TensorRT-RTX asks the GPU's driver, and "
            f"every such engine is run before it counts. Here, {error}. Leave --refit out, or build on the GPU"
        ) from error


def _found(need: Need, entries: Sequence[Entry]) -> Entry | None:
    fits = [entry for entry in entries if not misfits(need, entry.report)]
    return min(fits, key=lambda entry: len(entry.report.profiles), default=None)


def _built(library: Library, bundle: Bundle, need: Need, order: Order, here: Sequence[Entry], tell: Tell) -> Entry:
    graph = bundle.manifest.graphs[need.graph]
    job = Job(
        name=need.graph,
        onnx=bundle.path(graph.file),
        inputs=graph.inputs,
        profiles=need.profiles,
        targets=need.targets,
        options=order.options,
        timings=timings_file(order, library),
        device=Device(order.device_id) if _needs_gpu(order) else None,
    )

    task = Task(library, need, graph, job, order.folder)

    def build() -> tuple[Any, Callable[[int, str], Report]]:
        began = perf_counter()
        plan, report = make(task, here, lambda phase, share: tell(need.graph, phase, share))
        check(report, order.bounds)

        def report_of(plan_bytes: int, plan_sha256: str) -> Report:
            return replace(report, seconds=perf_counter() - began, plan_bytes=plan_bytes, plan_sha256=plan_sha256)

        return plan, report_of

    try:
        entry = Cache(order.folder).get_or_build(key_of(need), build)
    except BackendError as error:
        near = [entry.report for entry in here if entry.report.graph == need.graph]
        if not near:
            raise
        why = "; ".join(f"one {misfits(need, report)}" for report in near)
        raise StaleEngineError(
            f"no engine of {need.graph!r} fits: {why}. A new one cannot be built: {error}"
        ) from error
    check(entry.report, order.bounds)
    return entry


def timings_file(order: Order, library: Library) -> Path | None:
    """Where TensorRT's measurements on the GPU at hand are kept; TensorRT-RTX measures nothing when it builds."""
    if order.flavour != "tensorrt":
        return None
    return order.folder / f"{file_name('timings', library.version, Device(order.device_id).name)}.cache"


def content_of(graph: Graph) -> str:
    """Hash of a graph and its weights, from the hashes that the export wrote down."""
    return hashlib.sha256("".join(sorted(graph.sha256.values())).encode()).hexdigest()


def targets_of(order: Order, graph: Graph, here: str) -> tuple[str, ...]:
    """The targets of a graph's engine; `here` is the GPU at hand, where the build needs it.

    Raises:
        BuildError: A target that cannot be built for here, or cannot hold the graph's precision.
    """
    if order.flavour == "tensorrt-rtx":
        targets = rtx_targets(order.targets, graph.precision)
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
    return (trt_target(here, graph.precision),)
