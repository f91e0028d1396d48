"""A run as a table of numbers: levels, schedules, solvers and stages, worked out before any engine loads."""

from lssgen.plan.cost import predicted_speedup, stage_flops
from lssgen.plan.facts import Defaults, ModelFacts, NetworkCost, ScalingSpace
from lssgen.plan.options import PlanOptions, SkipLayerGuidance
from lssgen.plan.planner import make_plan
from lssgen.plan.sampling import OWN_SOLVER, solver_names
from lssgen.plan.scheduler_choice import SchedulerChoice
from lssgen.plan.table import ROW, Plan, Stage, Step

__all__ = [
    "OWN_SOLVER",
    "ROW",
    "Defaults",
    "ModelFacts",
    "NetworkCost",
    "Plan",
    "PlanOptions",
    "ScalingSpace",
    "SchedulerChoice",
    "SkipLayerGuidance",
    "Stage",
    "Step",
    "make_plan",
    "predicted_speedup",
    "solver_names",
    "stage_flops",
]
