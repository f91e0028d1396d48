"""Solvers: functions from the evaluations that a schedule foresees to the rows of a stage.

Each gets the evaluations that are left after a later stage's start was cut off, so the first one never has a history.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lssgen.plan.levels import Evaluation, Halves
from lssgen.plan.schedulers import Kind
from lssgen.plan.solvers.dpm import dpm_multistep, dpm_singlestep
from lssgen.plan.solvers.first import ddpm, first_order, lcm, restart
from lssgen.plan.solvers.heun import heun, kdpm2, kdpm2_ancestral, with_halves, with_trial_ends
from lssgen.plan.solvers.multistep import deis, lms
from lssgen.plan.solvers.pndm import pndm
from lssgen.plan.solvers.tuning import Course, Tuning
from lssgen.plan.solvers.unipc import unipc
from lssgen.plan.table import Step

__all__ = ["SOLVERS", "Course", "Solver", "Tuning"]


def _alone(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    return tuple(evaluations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """One solver.

    Attributes:
        scheduler: diffusers class that computes it on a table of betas; empty where the library has none.
        kinds: Schedules that it fits.
        rows: Function that makes the rows.
        expanded: Function from a schedule's steps to the evaluations, one a row, for solvers that make two in a step.
        halves: Place of its second evaluation, if that has a level of its own.
        fields: Values that it asks of the scheduler's configuration.
        unsaid: Values of fields that the configuration leaves out, where diffusers' own could not be reproduced.
        order: Order of convergence, for people.
        evaluations: Evaluations of the network in a step.
        memory: Estimates of earlier rows that it looks back on.
        draws: Draws fresh noise.
    """

    scheduler: str
    kinds: tuple[Kind, ...]
    rows: Callable[[Course, Tuning], tuple[Step, ...]]
    expanded: Callable[[Sequence[Evaluation]], tuple[Evaluation, ...]] = _alone
    halves: Halves = ""
    fields: Mapping[str, object] = field(default_factory=dict[str, object])
    unsaid: Mapping[str, object] = field(default_factory=dict[str, object])
    order: str
    evaluations: int = 1
    memory: int = 0
    draws: bool = False


_DPM = "DPMSolverMultistepScheduler"
_UNCLIPPED: Mapping[str, object] = {"clip_sample": False}
_ALL: tuple[Kind, ...] = ("beta", "flow", "edm")

SOLVERS: Mapping[str, Solver] = {
    "euler": Solver(
        scheduler="EulerDiscreteScheduler",
        kinds=_ALL,
        rows=lambda course, _: first_order(course.left),
        order="1",
    ),
    "euler-ancestral": Solver(
        scheduler="EulerAncestralDiscreteScheduler",
        kinds=("beta",),
        rows=lambda course, _: first_order(course.left, eta=1.0),
        order="1",
        draws=True,
    ),
    "ddim": Solver(
        scheduler="DDIMScheduler",
        kinds=("beta",),
        # Not on flow and EDM, where without eta it is "euler" to the number.
        rows=lambda course, tuning: first_order(course.left, eta=tuning.eta),
        unsaid=_UNCLIPPED,
        order="1",
    ),
    "ddpm": Solver(
        scheduler="DDPMScheduler",
        kinds=("beta",),
        rows=lambda course, tuning: ddpm(course.left, wide=tuning.wide),
        unsaid=_UNCLIPPED,
        order="1",
        draws=True,
    ),
    "pndm": Solver(
        scheduler="PNDMScheduler",
        kinds=("beta",),
        rows=lambda course, _: pndm(course.left, course.cut),
        unsaid={"skip_prk_steps": True},
        order="2 (4 after its warm-up)",
        memory=4,
    ),
    "dpm++2m": Solver(
        scheduler=_DPM,
        kinds=_ALL,
        rows=dpm_multistep,
        fields={"algorithm_type": "dpmsolver++", "solver_order": 2},
        order="2",
        memory=1,
    ),
    "dpm++3m": Solver(
        scheduler=_DPM,
        kinds=_ALL,
        rows=dpm_multistep,
        fields={"algorithm_type": "dpmsolver++", "solver_order": 3},
        order="3",
        memory=2,
    ),
    "dpm++2m-sde": Solver(
        scheduler=_DPM,
        kinds=_ALL,
        rows=dpm_multistep,
        fields={"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
        order="2",
        memory=1,
        draws=True,
    ),
    # Without fields: the one for files that ask for what no name above has, such as "dpmsolver" of order 1.
    "dpm": Solver(scheduler=_DPM, kinds=_ALL, rows=dpm_multistep, order="as the scheduler's config says", memory=2),
    "dpm++2s": Solver(
        scheduler="DPMSolverSinglestepScheduler",
        kinds=("beta", "flow"),
        rows=dpm_singlestep,
        order="2 (up to 3 by the scheduler's config)",
        memory=2,
    ),
    "unipc": Solver(
        scheduler="UniPCMultistepScheduler",
        kinds=("beta", "flow"),
        rows=unipc,
        order="2 (up to 3 by the scheduler's config), corrected to one more",
        memory=3,
    ),
    "deis": Solver(
        scheduler="DEISMultistepScheduler",
        kinds=("beta",),
        # Not on flow: near pure noise it loses the network's output in rounding (`reading._own_flow`).
        rows=deis,
        order="2 (up to 3 by the scheduler's config)",
        memory=2,
    ),
    "lms": Solver(
        scheduler="LMSDiscreteScheduler",
        kinds=("beta",),  # on the last levels of flow and of EDM, which lie far apart for it, it is not stable
        rows=lambda course, _: lms(course),
        order="4, rising",
        memory=3,
    ),
    "heun": Solver(
        scheduler="HeunDiscreteScheduler",
        kinds=_ALL,
        rows=lambda course, _: heun(course.left),
        expanded=with_trial_ends,
        unsaid=_UNCLIPPED,
        order="2",
        evaluations=2,
        memory=1,
    ),
    "kdpm2": Solver(
        scheduler="KDPM2DiscreteScheduler",
        kinds=_ALL,
        rows=lambda course, _: kdpm2(course.left),
        expanded=with_halves,
        halves="middle",
        order="2",
        evaluations=2,
        memory=1,
    ),
    "kdpm2-ancestral": Solver(
        scheduler="KDPM2AncestralDiscreteScheduler",
        kinds=("beta",),
        rows=lambda course, _: kdpm2_ancestral(course.left),
        expanded=with_halves,
        halves="end",
        order="2",
        evaluations=2,
        memory=1,
        draws=True,
    ),
    "lcm": Solver(
        scheduler="LCMScheduler",
        kinds=("beta",),
        rows=lambda course, tuning: lcm(course.left, timestep_scaling=tuning.timestep_scaling),
        unsaid=_UNCLIPPED,
        order="1, for consistency models",
        draws=True,
    ),
    "tcd": Solver(
        scheduler="TCDScheduler",
        kinds=("beta",),
        rows=lambda course, _: first_order(course.left),
        unsaid=_UNCLIPPED,
        order="1, for consistency models",
    ),
    "restart": Solver(
        scheduler="",
        kinds=("flow",),
        rows=lambda course, _: restart(course.left),
        order="1, for consistency models",
        draws=True,
    ),
}
"""Every solver, by the name that a user gives."""
