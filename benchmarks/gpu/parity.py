"""Is it right? Every graph, and whole runs, on one backend against ONNX Runtime on the CPU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lssgen.bundle import Bundle, Graph
from lssgen.engines.base import Array, Backend, Engine, Port
from lssgen.engines.profiles import Demand, Profile, profiles_of
from lssgen.errors import LssgenError
from lssgen.runtime import Pipeline

GRAPH_BOUNDS = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Relative error of one graph. fp32: sums of thousands in another order; 16 bits: tens of roundings in sequence."""

RUN_BOUNDS = {"fp32": 1e-2, "fp16": 1e-1, "bf16": 3e-1}
"""Relative error of final latents: every step adds its own, and the next one carries it on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One comparison.

    Attributes:
        what: "sd3 step at batch 1, height 64, ...".
        engine: Name of the backend.
        error: Relative error in the L2 norm, the largest over the outputs; NaN where nothing was compared.
        bound: What it may be.
        note: Why nothing was compared; empty where something was.
    """

    what: str
    engine: str
    error: float
    bound: float
    note: str = ""

    @property
    def state(self) -> str:
        if self.note:
            return "skipped"
        return "ok" if self.error <= self.bound else "WRONG"  # NaN is wrong


def graph_verdicts(bundle: Bundle, reference: Backend, backend: Backend, seed: int = 0) -> Iterator[Verdict]:
    """Every graph of a bundle at every size it is built for."""
    for name, profiles in profiles_of(bundle.manifest, Demand()).items():
        graph = bundle.manifest.graphs[name]
        label = f"{bundle.manifest.facts.name} {name} {graph.precision}"
        try:
            exact = reference.load(bundle.path(graph.file), name=label)
            tested = backend.load(bundle.path(graph.file), name=label)
        except LssgenError as error:
            yield _skipped(label, backend, str(error))
            continue
        for profile in profiles:
            inputs = sample_inputs(graph, profile, seed)
            sizes = {axis: extent.best for axis, extent in profile.axes.items()}
            wanted, got = (run(on, engine, inputs, sizes) for on, engine in ((reference, exact), (backend, tested)))
            error = max(relative_error(got[port], wanted[port]) for port in wanted)
            yield Verdict(
                what=f"{label} at {profile}", engine=backend.name, error=error, bound=GRAPH_BOUNDS[graph.precision]
            )
        exact.close()
        tested.close()


def run_verdicts(bundle: Bundle, reference: Backend, backend: Backend) -> Iterator[Verdict]:
    """Whole runs: staged and in one stage, the same seed on both backends."""
    facts = bundle.manifest.facts
    low, high = bundle.manifest.resolutions[0], bundle.manifest.resolutions[-1]
    worst = max(RUN_BOUNDS[graph.precision] for graph in bundle.manifest.graphs.values())
    for stages, start in (("staged", facts.defaults.start_sigma), ("single stage", 1.0)):
        label = f"{facts.name} whole run, {stages}"
        options: dict[str, Any] = {
            "seed": 1, "num_inference_steps": 8, "height": high[0], "width": high[1], "start_sigma": start,
            "min_resolution": min(low), "scaling_space": _space(bundle),
        }  # fmt: skip
        try:
            latents: list[Array] = []
            for on in (reference, backend):
                with Pipeline(bundle, on) as pipeline:
                    latents.append(pipeline("a red circle", **options).latents)
        except LssgenError as error:
            yield _skipped(label, backend, str(error))
            continue
        yield Verdict(what=label, engine=backend.name, error=relative_error(latents[1], latents[0]), bound=worst)


def run(backend: Backend, engine: Engine, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Bind an engine to fresh buffers and call it three times: plainly, captured, replayed. The last one counts."""
    feeds = {name: backend.empty(value.shape, value.dtype) for name, value in inputs.items()}
    results = {port.name: backend.empty(_shape(port, sizes), port.dtype) for port in engine.outputs}
    for name, value in inputs.items():
        feeds[name].write(value)
    call = engine.bind({**feeds, **results})
    for _ in range(3):
        call()
    return {name: buffer.read() for name, buffer in results.items()}


def sample_inputs(graph: Graph, profile: Profile, seed: int) -> dict[str, Array]:
    """Seeded tensors for the inputs of a graph: normal numbers, small token ids, grey levels, a step in mid-run."""
    rng = np.random.default_rng(seed)
    sizes = {axis: extent.best for axis, extent in profile.axes.items()}
    return {port.name: _sample(port, _shape(port, sizes), rng) for port in graph.inputs}


def relative_error(got: Array, wanted: Array) -> float:
    """|got - wanted| / |wanted| in the L2 norm, in float64."""
    exact = wanted.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - exact) / max(float(np.linalg.norm(exact)), 1e-30))


def _sample(port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if port.name == "row":
        row = np.zeros(shape, np.float32)
        row[[0, 1, 3, 4, 6]] = 600.0, 1.0, 1.0, 1.0, -0.1  # label, c_in, h_f, keep, blend[0]
        return row
    if port.name == "guidance_weights":
        return np.asarray([-1.0] * (shape[0] - 1) + [float(shape[0])], np.float32)  # adds up to one, as in a run
    if port.name == "mix":
        return np.asarray([0.25, 0.75], np.float32)
    if port.name == "layer_gates":
        return np.ones(shape, np.float32)
    if port.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    if port.dtype == "int64":
        return rng.integers(0, 2 if "mask" in port.name else 100, shape, np.int64)
    return rng.standard_normal(shape, np.float32)


def _shape(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.shape)


def _space(bundle: Bundle) -> str:
    return next(space for space in ("resnet", "latent", "pixel") if f"transition_{space}" in bundle.manifest.graphs)


def _skipped(what: str, backend: Backend, why: str) -> Verdict:
    return Verdict(what=what, engine=backend.name, error=float("nan"), bound=0.0, note=why)
