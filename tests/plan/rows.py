"""Facts of models to plan for, and the loop over a plan's rows in NumPy: what the runtime does, without engines."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from lssgen.plan import Defaults, ModelFacts, NetworkCost, Stage, Step

DEFAULTS = Defaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=5.0)
LINEAR_COST = NetworkCost(fixed=0, per_cell=1, per_cell_pair=0)
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
FLOW = "FlowMatchEulerDiscreteScheduler"
FLOW_CONFIGS = {
    "range": {"shift": 3.0},
    "even": {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    "labels": {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75},
}


def flow_facts(grid: Any = "range", defaults: Defaults = DEFAULTS, **more: Any) -> ModelFacts:
    """Facts like SD3's ("range"), FLUX's ("even") or CogView4's ("labels")."""
    return ModelFacts(
        name=f"flow-{grid}",
        channels=16,
        align=2,
        patch=2,
        grid=grid,
        oversize="floor" if grid == "even" else "refuse",
        scheduler=FLOW,
        scheduler_config=FLOW_CONFIGS[grid] | more,
        start="timestep",
        guidance="embedded" if grid == "even" else "branches",
        defaults=defaults,
        cost=LINEAR_COST,
    )


def diffusion_facts(scheduler: str, defaults: Defaults = DEFAULTS, **config: Any) -> ModelFacts:
    """Facts like those of SD and SDXL, with the beta table of both."""
    return ModelFacts(
        name=scheduler,
        channels=4,
        scheduler=scheduler,
        scheduler_config=BETAS | config,
        start="fraction",
        defaults=defaults,
        cost=LINEAR_COST,
    )


def run_steps(
    steps: tuple[Step, ...], x: np.ndarray, network: Callable[[np.ndarray, Step], Any], draw: Callable[[], Any] = list
) -> np.ndarray:
    """Apply rows as docs/bundle.md says.

    Args:
        steps: Of one stage.
        x: The stage's first latent; its type is that of the computation.
        network: Output F, guidance included, for the scaled latent at a step.
        draw: Fresh noise, for the steps that draw.
    """
    history: deque[Any] = deque(maxlen=8)
    for step in steps:
        history.appendleft(step.h_x * x + step.h_f * network(step.c_in * x, step))
        x = step.keep * x
        for weight, estimate in zip(step.blend, history, strict=False):
            x = x + weight * estimate
        if step.noise is not None:
            x = x + step.noise * draw()
    return x


def sigmas(stage: Stage) -> list[float]:
    """Noise levels of a stage, the last one included."""
    return [step.sigma for step in stage.steps] + [stage.steps[-1].next_sigma]
