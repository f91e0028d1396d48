"""PNDM: Adams-Bashforth on the noise, with a warm-up that makes its first step again."""

from collections.abc import Sequence
from dataclasses import replace

from lssgen.plan.levels import Evaluation
from lssgen.plan.solvers.first import first_move
from lssgen.plan.solvers.moves import Move, step
from lssgen.plan.table import Step

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


def pndm(evaluations: Sequence[Evaluation], cut: Sequence[Evaluation] = ()) -> tuple[Step, ...]:
    """Pseudo linear multistep without Runge-Kutta warm-up (`skip_prk_steps`).

    The second evaluation makes the step that leads to its own level again, from where the first step began, with the
    mean of both outputs. That beginning is an affine combination of x and of the first output, so it costs one more
    weight and no state.

    Args:
        evaluations: The evaluations of the stage.
        cut: Those before them that a later stage leaves out. Where a cut falls on the timestep that the warm-up
            repeats, the step to be made again is the last of these.

    Source: Liu et al. 2022, arXiv 2202.09778, eq. 9 and 12, as in diffusers' PNDMScheduler.
    """
    steps: list[Step] = []
    for index, evaluation in enumerate(evaluations):
        shown, plain = evaluation, first_move(evaluation)
        weights = _PNDM_WARM_UP[index] if index < len(_PNDM_WARM_UP) else _PNDM
        move = Move(plain.x, tuple(plain.estimates[0] * weight for weight in weights))
        if index == 1:
            first = evaluations[0]
            again = cut[-1] if cut and first.label == evaluation.label else first
            plain = first_move(again)
            half = plain.estimates[0] / 2
            move = Move(plain.x, (half, half)).after(first_move(first).undone())
            shown = replace(evaluation, level=first.to, to=again.to)
        steps.append(step(shown, move))
    return tuple(steps)
