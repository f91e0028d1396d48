"""What a run needs of its bundle: graphs, sizes, batches and branches, for the door to the engines."""

from lssgen.engines.demand import Demand, branch_counts
from lssgen.manifest import Manifest, Picture
from lssgen.plan import Plan
from lssgen.runtime.options import Request


def demand_of(
    manifest: Manifest,
    request: Request,
    *,
    prompts: int,
    previews: bool = False,
    starts: bool = False,
    encodes: bool = True,
) -> Demand:
    """What a run's graphs must be compiled for.

    Where the sizes that a bundle is usually compiled for suffice they are asked for, so that runs share their engines.

    Args:
        manifest: Manifest of the bundle.
        request: The run.
        prompts: Number of prompts that are painted one after another, `request.batch` pictures at a time.
        previews: True where the picture of every stage is shown.
        starts: True where the run starts from a picture.
        encodes: True where prompts are encoded, and not given as embeddings.
    """
    branches = {len(step.guidance) for stage in request.plan.stages for step in stage.steps}
    cell = request.plan.cell_px
    sizes = tuple((stage.height * cell, stage.width * cell) for stage in request.plan.stages)
    double = (2 * sizes[-1][0], 2 * sizes[-1][1])  # where it is usual too, pictures usually do not end here
    usual = set(sizes) <= set(manifest.resolutions) and double not in manifest.resolutions
    return Demand(
        graphs=graphs_of(manifest, request.plan, starts=starts, encodes=encodes),
        batches=_batches(manifest, request, prompts),
        branches=() if branches <= set(branch_counts(manifest)) else tuple(sorted(branches)),
        resolutions=() if usual else sizes,
        previews=previews,
    )


def graphs_of(manifest: Manifest, plan: Plan, *, starts: bool, encodes: bool = True) -> tuple[str, ...]:
    """Names of the graphs that a run calls, in their order."""
    pictures = (feed for feed in manifest.feeds(Picture) if isinstance(feed, Picture))
    reads = starts or any(feed.read_as in ("latent", "kept") for feed in pictures)
    between = (f"transition_{plan.scaling_space}",) if len(plan.stages) > 1 else ()
    steps = dict.fromkeys(manifest.step_at(stage.height, stage.width) for stage in plan.stages)
    text = ("text",) if encodes else ()
    return (*text, *(("encode",) if reads else ()), *steps, *between, "decode")


def _batches(manifest: Manifest, request: Request, prompts: int) -> tuple[int, ...]:
    """Every number of pictures that are painted together."""
    if prompts > 1 and any(tokens.pad_to == "longest" for tokens in manifest.tokenizers):
        return tuple(range(1, request.batch + 1))  # only prompts of one length are painted together
    # Batches go across prompts, so that only the last may be smaller.
    whole, rest = divmod(prompts * request.num_images, request.batch)
    return tuple(sorted({*([request.batch] if whole else []), *([rest] if rest else [])}))
