"""Is it fast? Steps, stages and whole runs of a bundle on one backend; the same network in torch."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.engines.demand import Demand, profiles_of
from lssgen.parity.samples import sample_inputs, shape_of
from lssgen.runtime import Pipeline

STEPS, ROUNDS = 20, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds, medians over the rounds.

    Attributes:
        what: "step at 1024 x 1024", "whole run, staged", ...
        engine: Name of the backend, or "torch eager", "torch compiled".
        ms: Time it took.
        note: Anything else that there is to say.
    """

    what: str
    engine: str
    ms: float
    note: str = ""


def step_timings(bundle: Bundle, backend: Backend) -> list[Timing]:
    """One step at every resolution, called again and again with nothing between."""
    graph = bundle.manifest.graphs["step"]
    engines = backend.open(bundle, Demand(graphs=("step",)))
    engine = engines["step"]
    timings: list[Timing] = []
    for profile in profiles_of(bundle.manifest, Demand())["step"]:
        sizes = {axis: extent.best for axis, extent in profile.axes.items()}
        inputs = sample_inputs(graph.inputs, sizes)
        buffers = {name: backend.empty(value.shape, value.dtype) for name, value in inputs.items()}
        for port in engine.outputs:
            buffers[port.name] = backend.empty(shape_of(port, sizes), port.dtype)
        for name, value in inputs.items():
            buffers[name].write(value)
        call = engine.bind(buffers)

        def calls(call: Callable[[], None] = call, last: Any = buffers["row"]) -> None:
            for _ in range(STEPS):
                call()
            last.read()  # waits

        timings.append(Timing(what=f"step, {profile}", engine=backend.name, ms=measured(calls) / STEPS))
    engines.close()
    return timings


def run_timings(bundle: Bundle, backend: Backend, alone: list[Timing]) -> list[Timing]:
    """Whole runs, staged and in one stage; `alone` are the same backend's `step_timings`."""
    facts = bundle.manifest.facts
    low, high = bundle.manifest.resolutions[0], bundle.manifest.resolutions[-1]
    space = next(s for s in ("resnet", "latent", "pixel") if f"transition_{s}" in bundle.manifest.graphs)
    options: dict[str, Any] = {"height": high[0], "width": high[1], "min_resolution": min(low), "scaling_space": space}
    timings: list[Timing] = []
    with Pipeline(bundle, backend) as pipeline:
        for name, start in (("staged", facts.defaults.start_sigma), ("single stage", 1.0)):
            results = [pipeline("a red circle", seed=1, start_sigma=start, **options) for _ in range(1 + ROUNDS)][1:]
            times = [result.times[0] for result in results]
            timings.append(
                Timing(what=f"whole run, {name}", engine=backend.name, ms=1e3 * median(t.total for t in times))
            )
            for index, stage in enumerate(times[0].stages):
                steps = len(stage.steps)
                ms = 1e3 * median((t.stages[index].total - t.stages[index].entry) / steps for t in times)
                lonely = next((t.ms for t in alone if f"height {stage.height_px // facts.cell_px}," in t.what), ms)
                what = f"{name}, stage {index + 1}: {steps} steps of {stage.width_px} x {stage.height_px}"
                note = f"gap between steps {1e3 * (ms - lonely):.0f} us"
                timings.append(Timing(what=what, engine=backend.name, ms=ms, note=note))
            timings.append(
                Timing(what=f"decode, {name}", engine=backend.name, ms=1e3 * median(t.decode for t in times))
            )
    return timings


def torch_timings(model: str, sizes: tuple[tuple[int, int], ...], mode: str = "max-autotune") -> Iterator[Timing]:
    """The network of one step in torch, fp16 on the GPU, two guidance branches: eager, then compiled.

    Args:
        model: "sd3-medium" or "sdxl", with random weights.
        sizes: Latent (height, width) in cells.
        mode: How hard torch.compile tries.
    """
    import torch
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    from benchmarks.checkpoints import MODELS

    on: dict[str, Any] = {"device": "cuda", "dtype": torch.float16}
    component, cls = ("unet", UNet2DConditionModel) if model == "sdxl" else ("transformer", SD3Transformer2DModel)
    config = dict(MODELS[model][1][component].config)
    with torch.device("cuda"):  # two billion random numbers take a minute on a CPU
        network: Any = cls.from_config(config).to(**on).eval()
    channels = network.config.in_channels
    text = torch.randn(2, 77 if model == "sdxl" else 333, 2048 if model == "sdxl" else 4096, **on)
    pooled = {"text_embeds": torch.randn(2, 1280, **on), "time_ids": torch.ones(2, 6, **on)}
    label = torch.full((2,), 600.0, device="cuda")

    def arguments(height: int, width: int) -> dict[str, Any]:
        latent = torch.randn(2, channels, height, width, **on)
        if model == "sdxl":
            return {"sample": latent, "timestep": label, "encoder_hidden_states": text, "added_cond_kwargs": pooled}
        return {
            "hidden_states": latent, "timestep": label, "encoder_hidden_states": text,
            "pooled_projections": torch.randn(2, 2048, **on),
        }  # fmt: skip

    for name, form in (("torch eager", network), (f"torch compiled, {mode}", torch.compile(network, mode=mode))):
        for size in sizes:
            given = arguments(*size)

            def calls(form: Any = form, given: dict[str, Any] = given) -> None:
                with torch.no_grad():
                    for _ in range(STEPS):
                        form(**given, return_dict=False)
                torch.cuda.synchronize()

            what = f"network alone, batch 1, branches 2, height {size[0]}, width {size[1]}"
            yield Timing(what=what, engine=name, ms=measured(calls) / STEPS)
    del network
    gc.collect()
    torch.cuda.empty_cache()


def measured(work: Callable[[], None]) -> float:
    """Median milliseconds of a piece of work, after a warm-up."""
    work()
    seconds: list[float] = []
    for _ in range(ROUNDS):
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
    return 1e3 * median(seconds)
