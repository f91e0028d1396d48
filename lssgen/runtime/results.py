"""What a run tells while it goes, and what it gives at the end."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from lssgen.plan import Plan
from lssgen.runtime.checking import Checked, Passed
from lssgen.runtime.options import Request
from lssgen.runtime.sampler import Floats, StageTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is, after a step.

    Attributes:
        stage, stages: Index of the stage, and how many there are.
        step, steps: Index of the step in it, and how many it has.
        height_px, width_px: The stage's picture size.
        done, total: Steps of the whole run, all batches.
    """

    stage: int
    stages: int
    step: int
    steps: int
    height_px: int
    width_px: int
    done: int
    total: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The pictures of a batch as they are after a stage that is not the last, decoded at the stage's own size.

    Attributes:
        stage, stages: Index of the stage, and number of stages.
        first: Number of the batch's first picture in the run, counted from 0.
        images: Pictures of the batch, RGB.
    """

    stage: int
    stages: int
    first: int
    images: tuple[Image.Image, ...]


OnPreview = Callable[[Preview], None]


@dataclass(slots=True)
class StepCounter:
    """Turns the sampler's steps into `Progress`.

    Attributes:
        plan: Plan that is carried out, `batches` times.
        tell: Hears of every step.
        done: Steps so far.
    """

    plan: Plan
    batches: int
    tell: OnProgress
    done: int = field(default=0)

    def __call__(self, stage: int, step: int, steps: int) -> None:
        self.done += 1
        at = self.plan.stages[stage]
        self.tell(
            Progress(
                stage=stage,
                stages=len(self.plan.stages),
                step=step,
                steps=steps,
                height_px=at.height * self.plan.cell_px,
                width_px=at.width * self.plan.cell_px,
                done=self.done,
                total=self.batches * self.plan.evaluations,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Picture:
    """One painted picture.

    Attributes:
        image: RGB.
        latent: (C, h, w) float32, final, in the model's own space.
        prompt, negative_prompt, seed: Words and number that it came from; no negative prompt is None.
        checked: Actions of the hooks that it has passed. Of one that a checker replaced, the latent is zeros.
    """

    image: Image.Image
    latent: Floats
    prompt: str
    negative_prompt: str | None
    seed: int
    checked: tuple[Checked, ...] = ()

    @classmethod
    def of(cls, passed: Passed, latent: Floats, *, prompt: str, negative_prompt: str | None, seed: int) -> "Picture":
        """A picture that has passed the hooks. A latent can be decoded: that of a replaced one is not given away."""
        return cls(
            image=passed.image,
            latent=np.zeros_like(latent) if passed.replaced else latent,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            checked=passed.checked,
        )

    def __repr__(self) -> str:
        return f"<Picture {self.image.width} x {self.image.height} px, seed {self.seed}: {self.prompt[:60]!r}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTimes:
    """Seconds that one batch of `pictures` took.

    Attributes:
        pictures: Number of pictures.
        load: Loading graphs, in the first batch of a pipeline.
        text: Encoding prompts that are new.
        stages: Smallest first.
        decode: Latents to pictures.
        total: Time from the beginning to the last picture, loading included.
    """

    pictures: int
    load: float
    text: float
    stages: tuple[StageTimes, ...]
    decode: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """What a run gives.

    Attributes:
        pictures: Pictures in the order of the prompts, `num_images` for each.
        request: Run that was asked for, with every default filled in, and its plan.
        times: One entry a batch.
    """

    pictures: tuple[Picture, ...]
    request: Request
    times: tuple[BatchTimes, ...]

    @classmethod
    def joined(cls, parts: Sequence["Result"]) -> "Result":
        """The parts of one run, at least one, as a whole."""
        return cls(
            pictures=tuple(picture for part in parts for picture in part.pictures),
            request=parts[0].request,
            times=tuple(times for part in parts for times in part.times),
        )

    def __repr__(self) -> str:
        stages = " -> ".join(
            f"{len(stage.steps)} steps at {clock.width_px} x {clock.height_px} px"
            for stage, clock in zip(self.plan.stages, self.times[0].stages, strict=True)
        )
        count, seconds = len(self.pictures), sum(times.total for times in self.times)
        return f"<Result {count} picture{'s' if count > 1 else ''}, {stages}, {seconds:.2f} s>"

    @property
    def plan(self) -> Plan:
        return self.request.plan

    @property
    def images(self) -> list[Image.Image]:
        return [picture.image for picture in self.pictures]

    @property
    def latents(self) -> Floats:
        """(pictures, C, h, w) float32."""
        return np.stack([picture.latent for picture in self.pictures])


class Painting(Iterator[Result]):
    """A run that goes on batch by batch, as its results are asked for.

    Attributes:
        request: Run that is carried out, with every default filled in.
    """

    def __init__(self, request: Request, batches: Iterator[Result]) -> None:
        self.request = request
        self._batches = batches

    def __next__(self) -> Result:
        return next(self._batches)
