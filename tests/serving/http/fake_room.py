"""An engine room without engines: pictures of one colour, when and as a test wants them."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from PIL import Image

from lssgen.bundle import Bundle
from lssgen.errors import CancelledError, LssgenError, PlanError, PromptError, RefusedError
from lssgen.runtime.options import Request, request_from_options
from lssgen.runtime.results import Picture
from lssgen.runtime.text import see_prompt
from lssgen.serving.api import (
    Answer,
    Done,
    Event,
    Failed,
    Hear,
    ImageRequest,
    PictureDone,
    Preview,
    Progress,
    Queued,
    Quote,
    Span,
    Timings,
    Usage,
)
from lssgen.serving.server import Server
from lssgen.serving.status import ModelInfo, Phase, Stats
from lssgen.serving.ticket import Ticket


@dataclass
class FakeRoom:
    """A server that paints in a thread of each request's own.

    Attributes:
        bundle: Plans are made for it.
        hold: Pictures wait until this is set.
        refuse: Raised by `submit` where it is not None.
        fail: End of every request, where it is not None.
        starts: As `ModelInfo.starts`.
        phase: As `Server.phase`.
        asked: Requests that were taken.
        cancelled: Number of requests that were.
        noise: True where pictures are noise, which no format makes small.
        floor: Multiple that sizes are rounded down to, as some models do.
        forgetful: Number of times that it has forgotten a draft.
    """

    bundle: Bundle
    hold: threading.Event = field(default_factory=threading.Event)
    refuse: LssgenError | None = None
    fail: LssgenError | None = None
    starts: bool = True
    phase: Phase = "ready"
    asked: list[ImageRequest] = field(default_factory=list)
    cancelled: int = 0
    noise: bool = False
    floor: int = 1
    forgetful: int = 0

    def __post_init__(self) -> None:
        self.hold.set()

    def reset(self) -> None:
        """As new."""
        self.hold.set()
        self.__dict__ = dict(FakeRoom(self.bundle).__dict__)

    @property
    def ready(self) -> bool:
        return self.phase == "ready"

    @property
    def live(self) -> bool:
        return self.phase in ("starting", "ready", "draining")

    def models(self) -> tuple[ModelInfo, ...]:
        defaults = self.bundle.manifest.facts.defaults
        return (
            ModelInfo(
                name="toy",
                aliases=("dall-e-2",),
                folder=str(self.bundle.folder),
                family="toy",
                created=1_700_000_000,
                loaded=True,
                height=defaults.height,
                width=defaults.width,
                multiple=8,
                starts=self.starts,
                stages=True,
                bytes=1,
            ),
        )

    def model(self, name: str = "") -> ModelInfo:
        (toy,) = self.models()
        if name in ("", toy.name, *toy.aliases):
            return toy
        if name == "toy@style":
            return replace(toy, name=name, aliases=())
        raise RefusedError(f"there is no model {name!r} here", code="unknown_model", param="model")

    def forget(self, draft: str) -> bool:
        return draft == "draft-1"

    def quote(self, asked: ImageRequest) -> Quote:
        request = self._request(asked)
        return Quote(request=request, seconds=None, alone_seconds=None, fastest_seconds=None, pixels=1, notes=())

    def submit(self, asked: ImageRequest, hear: Hear | None = None) -> Ticket:
        if self.refuse is not None:
            raise self.refuse
        request = self._request(asked)
        self.asked.append(asked)
        gone = threading.Event()

        def wish(_: Ticket, what: str) -> None:
            if what == "cancel":
                gone.set()

        ticket = Ticket(
            id=f"{len(self.asked):032x}",
            asked=asked,
            request=request,
            model="toy",
            notes=("a note",),
            position=lambda _: Queued(position=3, pixels=9, seconds=1.5),
            wish=wish,
        )
        if hear is not None:
            ticket.listen(hear)
        ticket.tell(Queued(position=3, pixels=9, seconds=1.5))
        threading.Thread(target=self._paint, args=(ticket, gone), daemon=True).start()
        return ticket

    def refine(
        self, draft: str, keep: Sequence[int], *, previews: bool = False, hear: Hear | None = None, **_: Any
    ) -> Ticket:
        if draft != "draft-1" or self.forgetful:
            self.forgetful -= self.forgetful > 0
            raise RefusedError("no such draft", code="unknown_draft", param="draft")
        first = next(one for one in self.asked if one.draft)
        return self.submit(replace(first, draft=False, n=len(keep), previews=previews), hear)

    def stats(self) -> Stats:
        counts = dict.fromkeys(Stats.__dataclass_fields__, 0)
        return Stats(**cast(Any, {**counts, "phase": self.phase, "lanes": (), "refused": {"queue_full": 2}}))

    def _request(self, asked: ImageRequest) -> Request:
        options = dict(asked.options)
        for side in ("height", "width"):
            if side in options:
                options[side] = int(cast(int, options[side])) // self.floor * self.floor
        try:
            see_prompt(asked.prompt)
            return request_from_options(self.bundle, cast(Any, {"num_images": asked.n, **options}))
        except (PlanError, PromptError) as error:
            param = "height" if "sides" in str(error) else None
            raise RefusedError(str(error), code="invalid_value", param=param) from error

    def _paint(self, ticket: Ticket, gone: threading.Event) -> None:
        while not self.hold.wait(0.005):
            if gone.is_set():
                break
        if gone.is_set():
            self.cancelled += 1
            ticket.tell(Failed(error=CancelledError("the request was taken back")))
            return
        if self.fail is not None:
            ticket.tell(Failed(error=self.fail))
            return
        pictures = tuple(self._picture(ticket, index) for index in range(ticket.asked.n))
        usage = Usage(text_tokens=3, image_tokens=64, pixels=64, steps=6, passes=12, device_seconds=0.25)
        span = Span(name="stage", index=0, began_s=0.1, ended_s=0.2, height_px=32, width_px=32, steps=3)
        timings = Timings(queue=0.01, total=0.5, submitted=time.time(), spans=(span,))
        answer = Answer(
            pictures=pictures,
            request=ticket.request,
            model="toy",
            draft="draft-1" if ticket.asked.draft else "",
            timings=timings,
            usage=usage,
            notes=ticket.notes,
        )
        ticket.tell(Done(answer=answer))

    def _picture(self, ticket: Ticket, index: int) -> Picture:
        plan, request = ticket.request.plan, ticket.request
        told: list[Event] = [
            Progress(
                index=index,
                stage=0,
                stages=2,
                step=0,
                steps=3,
                height_px=32,
                width_px=32,
                done=1,
                total=6 * ticket.asked.n,
            )
        ]
        if ticket.asked.previews:
            small = Image.new("RGB", (plan.width_px // 2, plan.height_px // 2), "red")
            told.append(Preview(index=index, kind="stage", stage=0, stages=2, step=2, image=small))
        if ticket.asked.estimate_every:
            rough = Image.new("RGB", (plan.width_px, plan.height_px), "green")
            told.append(Preview(index=index, kind="estimate", stage=1, stages=2, step=1, image=rough))
        for event in told:
            ticket.tell(event)
        picture = Picture(
            image=self._image((plan.width_px, plan.height_px), request.seed + index),
            latent=np.zeros((4, 8, 8), np.float32),
            prompt=ticket.asked.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed + index,
        )
        ticket.tell(PictureDone(index=index, picture=picture))
        return picture

    def _image(self, size: tuple[int, int], seed: int) -> Image.Image:
        if self.noise:
            return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
        return Image.new("RGB", size, seed % 256)


def as_server(room: FakeRoom) -> Server:
    """It has a server's methods, as far as HTTP uses them."""
    return cast(Server, room)
