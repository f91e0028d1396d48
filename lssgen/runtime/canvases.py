"""The pictures of a run before they are painted, and which of them are painted together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lssgen.errors import PromptError
from lssgen.plan import Plan
from lssgen.runtime.conditioning import Conditioning
from lssgen.runtime.sampler import Floats
from lssgen.runtime.text import Lengths


@dataclass(frozen=True, slots=True)
class Canvas:
    """One picture to paint.

    Attributes:
        number: Place in the run, counted from 0.
        prompt, seed: Prompt and seed that it is painted from.
        lengths: Numbers of tokens that its prompts take.
        noise: (C, h, w) that its stages begin with; empty: drawn from the seed.
        heard: Conditioning that its branches hear, where that was given; None: the encoder makes it of the prompt.
    """

    number: int
    prompt: str
    seed: int
    lengths: Lengths
    noise: tuple[Floats, ...] = ()
    heard: Conditioning | None = None


def with_noise(canvases: list[Canvas], noise: Sequence[Floats], plan: Plan, channels: int) -> list[Canvas]:
    """Give every picture its part of the noise, if there is any.

    Raises:
        PromptError: It does not fit the run's stages and pictures.
    """
    if not len(noise):
        return canvases
    # Cast before the look at what is finite: a float64 beyond float32's range becomes infinite only here.
    given = [np.asarray(stage, np.float32) for stage in noise]
    wanted = [(len(canvases), channels, stage.height, stage.width) for stage in plan.stages]
    if [stage.shape for stage in given] != wanted or not all(np.isfinite(stage).all() for stage in given):
        came = ", ".join(str(stage.shape) for stage in given)
        raise PromptError(
            f"noise of the shapes {came} was given; this run takes finite numbers of the shapes "
            f"{', '.join(map(str, wanted))}, one array a stage"
        )
    return [replace(canvas, noise=tuple(stage[canvas.number] for stage in given)) for canvas in canvases]


def in_batches(canvases: Sequence[Canvas], most: int) -> Iterator[Sequence[Canvas]]:
    """Runs of at most so many neighbours whose prompts take equally many tokens: one engine call has one length."""
    begin = 0
    for end in range(1, len(canvases) + 1):
        if end == len(canvases) or end - begin == most or canvases[end].lengths != canvases[begin].lengths:
            yield canvases[begin:end]
            begin = end
