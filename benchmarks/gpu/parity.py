"""Is it right? Every graph, and whole runs, on one backend against ONNX Runtime on the CPU."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Engine
from lssgen.engines.demand import Demand, profiles_of
from lssgen.errors import LssgenError
from lssgen.parity.accuracy import Outputs, compare, relative_error
from lssgen.parity.samples import sample_inputs, shape_of
from lssgen.ports import Array
from lssgen.runtime import Pipeline

RUN_BOUNDS = {"fp32": 1e-2, "fp16": 1e-1, "bf16": 3e-1}
"""Relative error of final latents: every step adds its own, and the next one carries it on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One comparison.

    Attributes:
        what: "sd3 step at batch 1, height 64, ...".
        engine: Name of the backend.
        graph: Name of the graph; empty: a whole run.
        error: Relative error in the L2 norm, the largest over the outputs; NaN where nothing was compared.
        bound: Largest error that is allowed.
        note: Reason why nothing was compared; empty where something was.
    """

    what: str
    engine: str
    error: float
    bound: float
    graph: str = ""
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
            exact, tested = (on.open(bundle, Demand(graphs=(name,))) for on in (reference, backend))
        except LssgenError as error:
            yield _skipped(label, backend, str(error))
            continue
        for profile in profiles:
            sizes = {axis: extent.best for axis, extent in profile.axes.items()}
            inputs = sample_inputs(graph.inputs, sizes, seed)
            pairs = ((reference, exact), (backend, tested))
            wanted, got = (run(on, engines[name], inputs, sizes) for on, engines in pairs)
            probe = compare(Outputs(got), Outputs(wanted), sizes, graph.precision)
            what = f"{label} at {profile}"
            yield Verdict(what=what, engine=backend.name, error=probe.error, bound=probe.bound, graph=name)
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
    results = {port.name: backend.empty(shape_of(port, sizes), port.dtype) for port in engine.outputs}
    for name, value in inputs.items():
        feeds[name].write(value)
    call = engine.bind({**feeds, **results})
    for _ in range(3):
        call()
    return {name: buffer.read() for name, buffer in results.items()}


def _space(bundle: Bundle) -> str:
    return next(space for space in ("resnet", "latent", "pixel") if f"transition_{space}" in bundle.manifest.graphs)


def _skipped(what: str, backend: Backend, why: str) -> Verdict:
    return Verdict(what=what, engine=backend.name, error=float("nan"), bound=0.0, note=why)
