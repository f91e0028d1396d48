"""The algebra that all solvers share: moves of a latent, done one after another and undone.

A solver that starts again from an earlier latent (Heun, UniPC's corrector) needs no state for it: that latent is an
affine combination of the present one and of the estimates, because the move that led away from it was one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

from lssgen.plan.levels import Evaluation, Level
from lssgen.plan.table import Step


@dataclass(frozen=True, slots=True)
class Move:
    """A latent as `x` * another latent + the sum of `estimates[k]` * h_k, newest estimate first."""

    x: float
    estimates: tuple[float, ...] = ()

    def after(self, first: "Move") -> "Move":
        """This move, of the latent that `first` leads to; both speak of the same estimates."""
        both = zip_longest(self.estimates, first.estimates, fillvalue=0.0)
        return Move(self.x * first.x, tuple(mine + self.x * earlier for mine, earlier in both))

    def undone(self) -> "Move":
        """From the latent that this move led to, back to the one it began with, one step later.

        By then there is a newer estimate, which it does not need.
        """
        return Move(1 / self.x, (0.0, *(-weight / self.x for weight in self.estimates)))

    def later(self) -> "Move":
        """The same move, one step later."""
        return Move(self.x, (0.0, *self.estimates))


Estimate = Literal["output", "image", "noise", "slope"]
"""Thing that a step remembers: the network's output; the clean picture or the noise that it sees; or the slope of x by
sigma, (x - picture) / sigma, for levels whose x moves along straight lines in sigma (flow, exploding variance)."""


def step(evaluation: Evaluation, move: Move, *, of: Estimate = "output", noise: float | None = None) -> Step:
    """The row of a move.

    Args:
        evaluation: What is evaluated.
        move: From its latent to the next one.
        of: What its estimates are.
        noise: Weight of fresh noise; None draws none.
    """
    h_x, h_f = _view(evaluation, of)
    return Step(
        label=evaluation.label,
        sigma=evaluation.level.sigma,
        next_sigma=evaluation.to.sigma,
        c_in=evaluation.c_in,
        h_x=h_x,
        h_f=h_f,
        keep=move.x,
        blend=move.estimates or (0.0,),
        noise=noise,
    )


def clean_step(evaluation: Evaluation) -> Step:
    """The row that ends a stage at what is seen in its latent: the clean latent that the network estimates."""
    to = replace(evaluation, to=Level(1.0, 0.0, 0.0))
    return step(to, Move(0.0, (1.0,)), of="image")


def _view(evaluation: Evaluation, of: Estimate) -> tuple[float, float]:
    """Weights of x and of the network's output in an estimate."""
    level, image_x, image_f = evaluation.level, evaluation.image_x, evaluation.image_f
    match of:
        case "output":
            return 0.0, 1.0
        case "image":
            return image_x, image_f
        case "noise":
            return (1 - level.image * image_x) / level.noise, -level.image * image_f / level.noise
        case "slope":
            return (1 - image_x) / level.sigma, -image_f / level.sigma


def back_by(moves: Sequence[Move], count: int) -> Move:
    """The latent that the last `count` of some moves began with, in terms of the one they led to."""
    back = Move(1.0)
    for age in range(count):
        undone = moves[-1 - age].undone()
        for _ in range(age):
            undone = undone.later()
        back = undone.after(back)
    return back
