"""Which sizes a run needs, for backends that compile for sizes."""

from lssgen.bundle import Manifest
from lssgen.engines.demand import Demand, branch_counts
from lssgen.runtime.options import Request


def demand_of(manifest: Manifest, request: Request, *, prompts: int) -> Demand:
    """What a run's graphs must be compiled for.

    Where the sizes that a bundle is usually compiled for suffice they are asked for, so that runs share their engines.

    Args:
        manifest: Of the bundle.
        request: The run.
        prompts: How many are painted one after another, `request.batch` pictures at a time.
    """
    whole, rest = divmod(prompts * request.num_images, request.batch)
    batches = {request.batch} if whole else set[int]()
    if rest:
        batches.add(rest)
    if prompts > 1 and any(tokens.pad_to == "longest" for tokens in manifest.tokenizers):
        batches = set(range(1, request.batch + 1))  # only prompts of one length are painted together
    branches = {len(step.guidance) for stage in request.plan.stages for step in stage.steps}
    cell = request.plan.cell_px
    sizes = tuple((stage.height * cell, stage.width * cell) for stage in request.plan.stages)
    double = (2 * sizes[-1][0], 2 * sizes[-1][1])  # where it is usual too, pictures usually do not end here
    usual = set(sizes) <= set(manifest.resolutions) and double not in manifest.resolutions
    return Demand(
        batches=tuple(sorted(batches)) or (request.batch,),
        branches=() if branches <= set(branch_counts(manifest)) else tuple(sorted(branches)),
        resolutions=() if usual else sizes,
    )
