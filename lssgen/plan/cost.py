"""What a plan costs, in arithmetic of the network."""

from lssgen.plan.facts import ModelFacts
from lssgen.plan.table import Plan, Stage


def stage_flops(stage: Stage, facts: ModelFacts) -> float:
    """FLOPs of a stage's network evaluations for one picture, every guidance branch counted."""
    return sum(len(step.guidance) for step in stage.steps) * facts.cost.flops(stage.height * stage.width)


def predicted_speedup(plan: Plan, facts: ModelFacts) -> float:
    """FLOPs of the same model at the full size in one stage with all steps, over the FLOPs of this plan.

    Text encoders, transitions and the decoder are left out: they are small, and but for the transition the same.
    """
    cells = plan.stages[-1].height * plan.stages[-1].width
    return plan.single_stage_passes * facts.cost.flops(cells) / sum(stage_flops(s, facts) for s in plan.stages)
