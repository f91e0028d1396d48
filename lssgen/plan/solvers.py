"""Solvers: functions from the evaluations a schedule foresees to the rows of a stage.

Each gets the evaluations that are left after a later stage's start was cut off, so the first one never has a history.
"""

from collections.abc import Sequence
from math import sqrt

from lssgen.plan.levels import Ask
from lssgen.plan.table import Step


def first_order(asks: Sequence[Ask], *, eta: float = 0.0) -> tuple[Step, ...]:
    """Keep the noise found at x, and change its share: flow Euler, Euler, DDIM and DPM-Solver-1 are all this.

    Args:
        asks: The evaluations.
        eta: Share of the noise that is drawn afresh: 0 for none and no draw; 1 is Euler ancestral.

    Source: Song et al. 2020, arXiv 2010.02502, eq. 12 and 16, for any pair of image and noise weights.
    """
    steps: list[Step] = []
    for ask in asks:
        at, to = ask.level, ask.to
        fresh = 0.0
        if eta and to.noise:  # the square roots are of 0, but for rounding, where a step stays on its level
            fresh = eta * to.noise * sqrt(max(0.0, 1 - (at.image * to.noise / (to.image * at.noise)) ** 2))
        keep = sqrt(max(0.0, to.noise**2 - fresh**2)) / at.noise
        gain = to.image - keep * at.image
        steps.append(
            Step(
                label=ask.label,
                sigma=at.sigma,
                next_sigma=to.sigma,
                c_in=ask.c_in,
                keep=keep + gain * ask.image_x,
                blend=(gain * ask.image_f,),
                noise=fresh if eta else None,
            )
        )
    return tuple(steps)


def dpmpp_2m(asks: Sequence[Ask]) -> tuple[Step, ...]:
    """DPM-Solver++(2M), midpoint form: extrapolate the clean picture from the last two estimates, linearly in log-SNR.

    The first step has no history, the one into a clean picture no finite log-SNR, and one after a step that stayed on
    its level (more steps than levels) no slope: these are of first order.

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
    """
    steps: list[Step] = []
    for index, ask in enumerate(asks):
        at, to = ask.level, ask.to
        keep = to.noise / at.noise
        gain = to.image - keep * at.image
        blend = (gain,)
        moved = at.log_snr - asks[index - 1].level.log_snr if index else 0.0
        if moved and to.noise:
            lean = (to.log_snr - at.log_snr) / (2 * moved)
            blend = (gain * (1 + lean), -gain * lean)
        steps.append(
            Step(
                label=ask.label,
                sigma=at.sigma,
                next_sigma=to.sigma,
                c_in=ask.c_in,
                h_x=ask.image_x,
                h_f=ask.image_f,
                keep=keep,
                blend=blend,
            )
        )
    return tuple(steps)


# Weights of the network's outputs, newest first: first evaluations, then every later one. The second evaluation's
# output is in the rows' history, but PNDM's own memory leaves it out: hence the zeros.
_PNDM_WARM_UP = (
    (1.0,),
    (1.0,),
    (3 / 2, 0.0, -1 / 2),
    (23 / 12, -16 / 12, 0.0, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, 0.0, -9 / 24),
)
_PNDM = (55 / 24, -59 / 24, 37 / 24, -9 / 24)


def pndm(asks: Sequence[Ask], cut: Sequence[Ask] = ()) -> tuple[Step, ...]:
    """Pseudo linear multistep without Runge-Kutta warm-up (`skip_prk_steps`).

    The second evaluation makes the step that leads to its own level again, from where the first step began, with the
    mean of both outputs. That beginning is an affine combination of x and of the first output, so it costs one more
    weight and no state.

    Args:
        asks: The evaluations of the stage.
        cut: Those before them that a later stage leaves out. Where a cut falls on the timestep that the warm-up
            repeats, the step to be made again is the last of these.

    Source: Liu et al. 2022, arXiv 2202.09778, eq. 9 and 12, as in diffusers' PNDMScheduler.
    """
    steps: list[Step] = []
    for index, ask in enumerate(asks):
        keep, gain = _pndm_move(ask)
        weights = _PNDM_WARM_UP[index] if index < len(_PNDM_WARM_UP) else _PNDM
        blend = tuple(gain * weight for weight in weights)
        at, to = ask.level, ask.to
        if index == 1:
            again = cut[-1] if cut and asks[0].label == ask.label else asks[0]
            made_keep, made_gain = _pndm_move(asks[0])
            keep, gain = _pndm_move(again)
            # Undo the first step, x = (x1 - made_gain * F0) / made_keep, and give each output half of the new gain.
            keep /= made_keep
            blend = (gain / 2, gain / 2 - keep * made_gain)
            at, to = asks[0].to, again.to
        steps.append(Step(label=ask.label, sigma=at.sigma, next_sigma=to.sigma, c_in=ask.c_in, keep=keep, blend=blend))
    return tuple(steps)


def lcm(asks: Sequence[Ask], *, timestep_scaling: float, sigma_data: float = 0.5) -> tuple[Step, ...]:
    """Latent consistency: jump to a clean picture, put fresh noise on it, again; the last jump stays clean.

    Source: Luo et al. 2023, arXiv 2310.04378, algorithm 3, as in diffusers' LCMScheduler.
    """
    steps: list[Step] = []
    for index, ask in enumerate(asks):
        last = index == len(asks) - 1
        scaled = ask.label * timestep_scaling
        skip = sigma_data**2 / (scaled**2 + sigma_data**2)
        out = scaled / sqrt(scaled**2 + sigma_data**2)
        at, to = ask.level, ask.to
        steps.append(
            Step(
                label=ask.label,
                sigma=at.sigma,
                next_sigma=to.sigma,
                c_in=ask.c_in,
                keep=to.image * (out * ask.image_x + skip),
                blend=(to.image * out * ask.image_f,),
                noise=None if last else to.noise,
            )
        )
    return tuple(steps)


def _pndm_move(ask: Ask) -> tuple[float, float]:
    """Weights of x and of the combined output F in one step."""
    keep = ask.to.noise / ask.level.noise
    gain = ask.to.image - keep * ask.level.image
    return keep + gain * ask.image_x, gain * ask.image_f
