"""The ways of a latent to the next size: what each takes over from the stage before, and how noisy it makes it.

The graphs of the same names are `lssgen.models.nets.transition.GRAPHS`. They compute, with the weights that a stage of
the plan has:

    next = image * enlarged(latent) + noise * e                        a clean latent, noised afresh
    next = gain * enlarged(state) + low_noise * e_low + noise * e_new  a noisy state that is kept

e_low is the part of the noise in the frequencies that the smaller latent has, e_new the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from lssgen.errors import PlanError
from lssgen.plan.facts import ScalingSpace

MixValue = Literal["image", "noise", "gain", "low_noise"]
"""A weight of a transition, by its name in `lssgen.plan.table.Stage`."""

HandOff = float | Literal["own", "auto"]
"""Noise level at which a stage that is not the last is left; "auto": the highest of which nothing is lost, see
`covered_share`; "own": that of the transition."""

SIDES = 2
"""Length of the next stage's sides, over that of the stage's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One way to the next size.

    Attributes:
        title: Words for what it does.
        takes: Latent that it takes over: the "clean" one that the stage before ends with or, where that is left early,
            estimates; or its noisy "state".
        hand_off: Level at which the stage before is left where the user does not say: 0, or "auto".
        noise_factor: Noise level that the latent is given, over the one that the next stage's solver starts at.
        start_sigma: `PlanOptions.start_sigma` where the user does not say; None: the model's.
        mixes: Weights that its graph takes, in order.
        source: Paper or program that it is from.
    """

    title: str
    takes: Literal["clean", "state"] = "clean"
    hand_off: HandOff = 0.0
    noise_factor: float = 1.0
    start_sigma: float | None = None
    mixes: tuple[MixValue, ...] = ("image", "noise")
    source: str


TRANSITIONS: Mapping[ScalingSpace, Transition] = {
    "resnet": Transition(title="the latent upsampler", source="LSSGen, arXiv 2507.16154"),
    "latent": Transition(title="bicubic interpolation of the latent", source="LSSGen, arXiv 2507.16154"),
    "pixel": Transition(title="decode, bicubic, encode", source="LSSGen, arXiv 2507.16154"),
    "dct": Transition(
        title="the noisy state's cosine transform within a larger one, new frequencies filled with noise",
        takes="state",
        hand_off="auto",
        mixes=("gain", "noise", "low_noise"),
        source="SPEED and SGLang's dct_rewind: s' = 2 s / (1 + s)",
    ),
    "selflift": Transition(
        title="nearest neighbours, mixed with the way through pixels where the two disagree",
        noise_factor=0.97,
        source="SelfLift, as proposed for SGLang",
    ),
    "sr": Transition(
        title="decode, a super-resolution network, encode",
        start_sigma=0.12,
        source="MrFlow",
    ),
}
"""Every transition, by the name that `PlanOptions.scaling_space` calls it by."""


def covered_share(share: float) -> float:
    """Noise share at which a stage may be left, so that what it would do below is covered by the next one's noise.

    A picture's cosine coefficients double with its sides while white noise keeps its own, so a state with noise / image
    = q holds as much of every frequency as one of twice the sides at 2 q. In shares, s = s' / (2 - s').

    Args:
        share: Noise share noise / (image + noise) at which the next stage starts, in [0, 1].
    """
    return share / (SIDES - (SIDES - 1) * share)


def kept_weights(left: tuple[float, float], start: tuple[float, float]) -> tuple[float, float]:
    """(gain, low_noise) that bring a kept state to a start of the next stage.

    Args:
        left: (image, noise) weights in the state.
        start: The same of the next stage's first latent.

    Raises:
        PlanError: The state is noisier than the start can hold.
    """
    gain = SIDES * start[0] / left[0] if left[0] else 0.0
    fresh = start[1] ** 2 - (gain * left[1]) ** 2
    # Rounding may leave the least bit below nothing, where the state holds exactly as much as the start.
    if fresh < -1e-9 * start[1] ** 2:
        raise PlanError(
            f"the noisy state that a stage ends with brings {gain * left[1]:.4g} of noise to a start with "
            f"{start[1]:.4g}: its schedule goes no lower; choose another transition, sigma_schedule, or more steps"
        )
    return gain, sqrt(max(0.0, fresh))
