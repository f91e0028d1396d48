"""What a server is asked, what it tells while it works, and what it gives: records, no behaviour.

    from lssgen.serving.api import ImageRequest

    with lssgen.Server("bundles/sd3", engine="tensorrt") as server:
        ticket = server.submit(ImageRequest(prompt="a lighthouse at dusk", options={"seed": 7}, previews=True))
        for event in ticket.events():
            ...                                     # Queued, Progress, Preview, PictureDone, Done
        picture = ticket.result().pictures[0]

`lssgen.serving.server.Server` takes requests from any thread, `lssgen.serving.ticket.Ticket` is what it gives for one.
HTTP, Ray and Triton are built on these three files and nothing below them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from PIL import Image

from lssgen.errors import LssgenError
from lssgen.runtime.options import Options, Request
from lssgen.runtime.results import Picture

RefusalCode = Literal[
    "invalid_value",  # a word, number, size, schedule, prompt or picture that cannot be used
    "unknown_model",
    "unknown_draft",  # never made, forgotten, or gone after its time
    "too_large",  # more pixels, steps or pictures than this server takes
    "no_memory",  # more memory than it has
    "deadline_impossible",  # no schedule fits; `fastest_ms` says what would
    "deadline_passed",  # it was taken, and its time ran out
    "queue_full",  # try again after `retry_after_s`
    "draining",  # the server stops
    "device_stuck",  # the device does not answer
    "broken_model",  # the bundle, or its engine, cannot be loaded
]
"""Values of `RefusedError.code`."""

State = Literal["queued", "running", "drafted", "done", "failed", "cancelled"]
"""Place of a request in its life. "drafted" is the good end of one with `draft`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """One or several pictures of one prompt.

    Attributes:
        prompt: Text; the empty one too.
        model: Name or alias of a model of the server; "": its first.
        n: Number of pictures. Picture i is painted with seed + i.
        options: Every other word, as for `lssgen.runtime.Options`: negative_prompt, seed, height, width,
            num_inference_steps, guidance_scale, start_sigma, min_resolution, solver, ... without num_images and batch,
            which are `n` and the server's. No seed: one is drawn, and the ticket says which.
        init_image, mask_image, conditions: Pictures, as for `lssgen.runtime.Pipeline`.
        deadline_ms: Milliseconds from `submit` until the last picture is done, above 0. The best schedule that fits,
            behind what waits already, is chosen; the request goes ahead of those without a deadline, and is stopped
            when its time has passed. None: no deadline.
        max_latency_ms: Milliseconds that painting may take on a device with nothing else to do, above 0: chooses the
            schedule, and nothing else. None: the schedule as asked.
        previews: Send the picture of every stage that is not the last, decoded at the stage's size.
        estimate_every: Send the clean picture that the device expects, after every so many steps; 0: never. Each costs
            a decode; `Ticket.estimate` asks for a single one.
        draft: Paint the first stage only, and keep its latents: `Server.refine` finishes those that are liked.
    """

    prompt: str
    model: str = ""
    n: int = 1
    options: Options = field(default_factory=Options)
    init_image: Image.Image | None = None
    mask_image: Image.Image | None = None
    conditions: Mapping[str, Image.Image] = field(default_factory=dict[str, Image.Image])
    deadline_ms: float | None = None
    max_latency_ms: float | None = None
    previews: bool = False
    estimate_every: int = 0
    draft: bool = False

    def without_pictures(self) -> "ImageRequest":
        """The same without the pictures that came with it, which are as large as their owner has them."""
        return replace(self, init_image=None, mask_image=None, conditions={})


# --- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The request waits.

    Attributes:
        position: Requests that wait ahead of it, in the order of the policy.
        pixels: Pixels of the pictures of all that wait, its own included.
        seconds: Estimated time until its last picture is done; None where nothing was measured yet.
    """

    position: int
    pixels: int
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The device has done a step of a picture.

    Attributes:
        index: Number of the picture in the request, from 0.
        stage, stages: Index of the stage, and how many there are.
        step, steps: Index of the step in it, and how many it has.
        height_px, width_px: Picture size of the stage.
        done, total: Steps of all pictures of the request.
    """

    index: int
    stage: int
    stages: int
    step: int
    steps: int
    height_px: int
    width_px: int
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A picture on its way.

    Attributes:
        index: Number of the picture in the request, from 0.
        kind: "stage": the finished picture of a stage that is not the last. "estimate": the clean picture that the
            device expects in the middle of a stage.
        stage, stages: Index of the stage, and how many there are.
        step: Index of the step of the stage after which it was taken.
        image: RGB, of the stage's size.
    """

    index: int
    kind: Literal["stage", "estimate"]
    stage: int
    stages: int
    step: int
    image: Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureDone:
    """A picture is finished; others of the request may not be. A draft's is the picture of its first stage."""

    index: int
    picture: Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The last event of a request that went well."""

    answer: "Answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last event of a request that did not go well, or was taken back.

    Attributes:
        error: A `RefusedError`, `CancelledError`, `EngineError` or `BundleError`.
    """

    error: LssgenError


Event = Queued | Progress | Preview | PictureDone | Done | Failed

Hear = Callable[[Event], None]
"""Called in the scheduler's thread, between two steps: it must return at once. What it raises is logged, and it hears
nothing more. In asyncio: `lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)`."""


# --- The end ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a picture's way, for timings and traces.

    Attributes:
        name: "queue", "load", "text", "encode", "stage", "transition", "preview" or "decode".
        index: Number of the picture in the request; -1: of the request as a whole.
        began_s, ended_s: Seconds since `submit`.
        height_px, width_px: Picture size; 0 where it has none.
        steps: Steps that were taken in it.
    """

    name: Literal["queue", "load", "text", "encode", "stage", "transition", "preview", "decode"]
    index: int
    began_s: float
    ended_s: float
    height_px: int = 0
    width_px: int = 0
    steps: int = 0

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of a request went, in seconds.

    Attributes:
        queue: Time from `submit` until its first picture was begun.
        total: Time from `submit` until the end.
        submitted: Unix time of `submit`.
        spans: Everything, in the order of its end.
    """

    queue: float
    total: float
    submitted: float
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request used.

    Attributes:
        text_tokens: Tokens of the prompt and the negative prompt in the first encoder, filling left out.
        image_tokens: Tokens of all pictures that were finished, at the size of their last stage.
        pixels: Pixels of all pictures that were finished.
        steps: Steps that the device has done for it.
        passes: The same, guidance branches counted.
        device_seconds: Its share of the engine calls: a step of a batch of b pictures counts 1 / b for each.
    """

    text_tokens: int
    image_tokens: int
    pixels: int
    steps: int
    passes: int
    device_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request gives.

    Attributes:
        pictures: Pictures in the order of their numbers.
        request: Run that was carried out, every choice made; `lssgen.runtime.record.parameters_of` takes it.
        model: Name of the model that painted.
        draft: Word for `Server.refine`; "" for a request that is not one.
        timings, usage: Costs.
        notes: Sentences that the caller should read: a prompt that is not heard in full, a rounded size, a schedule
            that was shortened for a deadline.
    """

    pictures: tuple[Picture, ...]
    request: Request
    model: str
    draft: str
    timings: Timings
    usage: Usage
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What would become of a request.

    Attributes:
        request: Run that would be carried out, the schedule chosen.
        seconds: Estimated time until its last picture is done, behind what waits; None where nothing was measured yet.
        alone_seconds: The same on a device with nothing else to do.
        fastest_seconds: Estimated time, alone, of the fastest schedule that a deadline may choose.
        pixels: Pixels of its pictures.
        notes: Sentences, as `Answer.notes`.
    """

    request: Request
    seconds: float | None
    alone_seconds: float | None
    fastest_seconds: float | None
    pixels: int
    notes: tuple[str, ...]
