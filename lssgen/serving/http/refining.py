"""Drafts that are finished: from the latents that the engine room keeps or, where these are gone, painted again.

A seed gives the same small picture again, so what a caller has seen and chosen is what is finished.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from lssgen.errors import CancelledError, LssgenError, RefusedError
from lssgen.serving.api import Done, Failed
from lssgen.serving.http.jobs import Job, failure
from lssgen.serving.http.orders import Order
from lssgen.serving.http.refusals import HttpError
from lssgen.serving.http.submitting import Events, Submit, Submitter
from lssgen.serving.server import Server


class Refiner:
    """Finishes drafts.

    Args:
        room: The server of the engine room.
        submitter: The way to it.
        ended: Called when a job has ended that no pump looks after.
    """

    def __init__(
        self, room: Server, submitter: Submitter, ended: Callable[[Job], Coroutine[Any, Any, None]]
    ) -> None:  # fmt: skip
        self._room = room
        self._submitter = submitter
        self._ended = ended

    async def begin(self, job: Job, draft: str) -> None:
        """Begin a job that finishes some pictures of a draft.

        Args:
            job: Job; its order says which pictures.
            draft: The room's word for the draft; empty: the room that drew it is gone.

        Raises:
            HttpError, LssgenError: It is refused.
        """
        if draft:
            try:
                await self._submitter.submit(job, self._kept(job, draft))
            except RefusedError as error:
                if error.code != "unknown_draft":
                    raise
            else:
                return
        see_repeatable(_order(job))
        self._submitter.go(self._draw_again(job))

    async def _draw_again(self, job: Job) -> None:
        """Paint the draft from its seeds, and finish what is kept of it."""
        try:
            draft = await self._drawn(job)
            if draft and await self._submitter.patiently(job, lambda: self._finish(job, draft)):
                self._room.forget(draft)
                return
        except (HttpError, LssgenError) as error:
            job.end("cancelled" if isinstance(error, CancelledError) else "failed", failure(error))
        if not job.open:
            await self._ended(job)
            job.changed()

    async def _drawn(self, job: Job) -> str:
        """The room's word for the draft, painted anew; empty where nobody wants it any more."""
        events: list[Events] = []

        async def draw() -> None:
            job.ticket, heard = await self._submitter.ask(lambda hear: self._room.submit(_order(job).room, hear))
            events.append(heard)

        if not await self._submitter.patiently(job, draw):
            return ""
        draft = await _draft_of(events[0])
        job.ticket = None  # it has ended, and could not take the job back
        return draft

    async def _finish(self, job: Job, draft: str) -> None:
        await self._submitter.submit(job, self._kept(job, draft))

    def _kept(self, job: Job, draft: str) -> Submit:
        keep = _order(job).asked.keep
        return lambda hear: self._room.refine(draft, keep, previews=True, hear=hear)


def see_repeatable(order: Order) -> None:
    """Refuse to paint a draft again whose schedule was chosen for a time: another one might be, now.

    Raises:
        HttpError: It was.
    """
    fields = order.asked.fields
    if fields.deadline_ms or fields.max_latency_ms:
        message = "the draft is gone, and its schedule was chosen by the clock: draw it again"
        raise HttpError("not_found", message, param="id")


async def _draft_of(events: Events) -> str:
    """The room's word for a draft, when it is drawn.

    Raises:
        LssgenError: It did not go well.
    """
    while True:
        match await events.get():
            case Done(answer=answer):
                return answer.draft
            case Failed(error=error):
                raise error
            case _:
                pass


def _order(job: Job) -> Order:
    assert job.order is not None, "a job is understood before it is begun"
    return job.order
