"""How to find the node that a library cannot compile: a line for Polygraphy, which halves the graph until it has it."""

import shlex

from lssgen.engines.trt.job import Job


def isolating_line(job: Job) -> str:
    """A shell command that reduces the job's graph to the nodes that do not compile, at its first profile."""
    sizes = job.profiles[0]
    shapes = [f"{port.name}:{[extent.best for extent in sizes.shape(port)]}".replace(" ", "") for port in job.inputs]
    reduce = ["polygraphy", "debug", "reduce", str(job.onnx), "-o", "reduced.onnx", "--mode", "bisect"]
    convert = ["polygraphy", "convert", "polygraphy_debug.onnx", "--convert-to", "trt", "-o", "reduced.plan"]
    command = [*reduce, "--model-input-shapes", *shapes, "--check", *convert, *_for_targets(job)]
    variable = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if job.flavour == "tensorrt-rtx" else ""
    return variable + shlex.join(command)


def advice(job: Job) -> str:
    """The end of a message about a graph that does not compile."""
    return f"To find the node (pip install polygraphy onnx-graphsurgeon):\n    {isolating_line(job)}"


def _for_targets(job: Job) -> list[str]:
    split = ["--decomposable-attentions"]
    if job.flavour != "tensorrt-rtx":
        return split
    return [*split, "--compute-capabilities", *(f"{target[2:-1]}.{target[-1]}" for target in job.targets)]
