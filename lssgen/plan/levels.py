"""Noise levels, and the questions that a solver asks the network at them."""

from dataclasses import dataclass
from math import inf, log


@dataclass(frozen=True, slots=True)
class Level:
    """How much picture and how much noise a latent holds: x = image * z + noise * e.

    Flow matching has image + noise = 1, variance-preserving diffusion image^2 + noise^2 = 1, variance-exploding
    diffusion image = 1. Every solver here is written for all three at once.

    Attributes:
        image, noise: The two weights, 0 or more.
        sigma: The same level in the schedule's own terms, for tables: `noise` for flow, noise / image for diffusion.
    """

    image: float
    noise: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """ln(image / noise), the half log signal-to-noise ratio; infinite at the two ends."""
        if self.noise == 0:
            return inf
        return log(self.image / self.noise) if self.image > 0 else -inf


@dataclass(frozen=True, slots=True)
class Ask:
    """One evaluation of the network that a schedule foresees.

    Attributes:
        level: Level of x.
        to: Level the step leads to.
        label: What the network is told (the timestep).
        c_in: Factor on x before the network.
        image_x, image_f: The clean picture as the network sees it: image_x * x + image_f * F.
    """

    level: Level
    to: Level
    label: float
    c_in: float
    image_x: float
    image_f: float
