"""The door: bundles in, requests from any thread, pictures out. One thread of its own has the device."""

import atexit
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Unpack
from weakref import WeakSet

from lssgen.engines.base import Backend
from lssgen.engines.demand import Size
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import open_backend
from lssgen.errors import RefusedError
from lssgen.lora.asked import Lora
from lssgen.runtime.checking import Checker, Guard, Watermark
from lssgen.runtime.options import Options, request_from_options
from lssgen.serving.api import Answer, Hear, ImageRequest, Queued, Quote
from lssgen.serving.clerk import Clerk, Order, next_number
from lssgen.serving.desk import Desk
from lssgen.serving.drafts import Drafts
from lssgen.serving.life import Life
from lssgen.serving.memory import budget_of
from lssgen.serving.models import Models, named
from lssgen.serving.options import ServerOptions
from lssgen.serving.scheduler import Scheduler
from lssgen.serving.status import ModelInfo, Observe, Phase, Stats
from lssgen.serving.ticket import Ticket
from lssgen.serving.work import Job, pieces_of, pixels_of
from lssgen.verification import Verify

_LEAST_RETRY_S, _MOST_RETRY_S = 1.0, 60.0
"""Seconds between which a refused caller is asked to come back."""


class Server:
    """Models on one device, which paint for many at the same time.

    Every method may be called from any thread. A picture is the one that `lssgen.runtime.Pipeline` would paint with the
    same words, whoever is painted beside it; on the CPU to the last bit.

    Args:
        bundles: A folder, or the name of one below LSSGEN_HOME/bundles; several, or several by the name that requests
            ask for. Without names, a bundle is called as its folder. The first is the model of requests that name none.
        engine: Where to run, as for `lssgen.load`; or a backend that is open.
        aliases: Other names of models, by name: {"sd3-default": "sd3"}.
        loras: LoRAs by the name that follows a model's and "@": with {"style": "style.safetensors:0.8"}, "sd3@style"
            is a model. A name that is none of these is looked for as a bundle LSSGEN_HOME/bundles/sd3@style, and as
            LSSGEN_HOME/loras/style.safetensors.
        options: Limits and policies.
        verify: When to compare files with their hashes, as for `lssgen.load`.
        observe: Given everything that is measured.
        checker, watermark: Hooks that every picture passes before it is given away, previews, estimates and drafts too,
            as for `lssgen.load`. They are called in the thread that has the device.
        engine_options: Options of the engine, as for `lssgen.load`.

    Raises:
        BundleError: No bundle there, or a damaged one; or two of one name.
        ModelError: A LoRA is not there, or its strength is not a number.
        BackendError: The engine is unknown, has no such option, or its library, driver or device is missing.
        PlanError: A size to be ready for that the first model cannot paint.
        CheckError: A hook is not there.
    """

    def __init__(
        self,
        bundles: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
        *,
        engine: str | Backend = "",
        aliases: Mapping[str, str] = MappingProxyType({}),
        loras: Mapping[str, str | Path | Lora] = MappingProxyType({}),
        options: ServerOptions | None = None,
        verify: Verify = "once",
        observe: Observe | None = None,
        checker: Checker | str | Sequence[Checker | str] | None = None,
        watermark: Watermark | str | None = None,
        **engine_options: Unpack[EngineOptions],
    ) -> None:
        self._options = options or ServerOptions()
        guard = Guard(checker, watermark)
        self._backend = open_backend(engine, **engine_options) if isinstance(engine, str) else engine
        self._models = Models(named(bundles), aliases, _asked(loras), self._backend, verify)
        self._sizes = self._declared()
        self._budget = budget_of(self._backend, self._options.memory_gib)
        self._desk = Desk(self._options, observe)
        self._drafts = Drafts(self._options.draft_seconds, self._options.draft_mib * 2**20)
        self._scheduler = Scheduler(
            self._backend, self._models, self._desk, self._drafts, self._options, self._budget, guard
        )
        self._clerk = Clerk(
            self._models, self._desk, self._drafts, self._scheduler.lanes, self._options, self._budget, self._sizes
        )
        self._life = Life(
            self._backend, self._models, self._desk, self._scheduler, self._options, self._budget, self._sizes
        )
        self._life.start()
        _OPEN.add(self)

    @property
    def phase(self) -> Phase:
        """What the server is doing; see `Phase`."""
        return self._life.phase

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests. Requests are taken before it is warm, and wait."""
        return self._life.phase == "ready"

    @property
    def live(self) -> bool:
        """Whether it works at all; False means that the process should be started again."""
        return self._life.live

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until it is warm; whether it is, in time.

        Raises:
            BundleError, EngineError, PlanError: What kept it from becoming so.
        """
        return self._life.wait_ready(timeout)

    def models(self) -> tuple[ModelInfo, ...]:
        """The models, the default first; those of LoRAs that were named before they are made."""
        return self._models.infos()

    def model(self, name: str = "") -> ModelInfo:
        """The model of a name or alias; makes one of a LoRA, which may take minutes the first time.

        Raises:
            RefusedError: There is none, or it cannot be had.
        """
        return self._models.described(name)

    def quote(self, asked: ImageRequest) -> Quote:
        """What would become of a request; nothing is done.

        Raises:
            RefusedError: As for `submit`, but for the queue.
        """
        order = self._clerk.read(asked)
        return Quote(
            request=order.request,
            seconds=order.seconds,
            alone_seconds=order.alone,
            fastest_seconds=order.fastest,
            pixels=pixels_of(order.request.plan, order.pictures),
            notes=order.notes,
        )

    def submit(self, asked: ImageRequest, hear: Hear | None = None) -> Ticket:
        """Take a request, or refuse it at once. Bad ones never reach the device.

        Args:
            asked: What to paint.
            hear: Hears every event from the first on, `Queued`, which comes before this returns.

        Raises:
            RefusedError: With a code, and the parameter that is to blame.
        """
        self._see_open()
        order = self._clerk.read(asked)
        job = self._job(asked, order)
        return self._taken(job.has(pieces_of(job, order.pictures)), order.seconds, hear)

    def paint(self, prompt: str, *, n: int = 1, model: str = "", **options: Unpack[Options]) -> Answer:
        """Submit and wait.

        Raises:
            RefusedError, EngineError, BundleError: As `submit` and `Ticket.result`; the second also where a listener
                calls it.
        """
        self._life.see_elsewhere("waited for")
        return self.submit(ImageRequest(prompt=prompt, n=n, model=model, options=options)).result()

    def refine(
        self,
        draft: str,
        keep: Sequence[int],
        *,
        deadline_ms: float | None = None,
        previews: bool = False,
        hear: Hear | None = None,
    ) -> Ticket:
        """Finish some pictures of a draft from the latents that it left; nothing is painted twice.

        Args:
            draft: `Answer.draft`.
            keep: Numbers of its pictures, in the order in which they are wanted.
            deadline_ms: Milliseconds until the last is done; the schedule stays the draft's.
            previews: As for a request.
            hear: As for `submit`.

        Raises:
            RefusedError: No such draft or picture, or as for `submit`.
        """
        self._see_open()
        old = self._clerk.draft(draft, keep)
        asked = replace(
            old.ticket.asked,
            draft=False,
            n=len(keep),
            deadline_ms=self._clerk.milliseconds(deadline_ms, "deadline_ms"),
            previews=previews,
        )
        job = old.continued(
            number=next_number(),
            ticket=self._ticket(asked, old.ticket),
            deadline=inf if deadline_ms is None else monotonic() + deadline_ms / 1e3,
        )
        job.has(tuple(old.pieces[index].copy_for(job, place) for place, index in enumerate(keep)))
        return self._taken(job, self._clerk.seconds_left(job), hear)

    def forget(self, draft: str) -> bool:
        """Let go of a draft; whether it was there."""
        return self._drafts.forget(draft)

    def stats(self) -> Stats:
        """The server at this moment."""
        counts, waiting = self._desk.counts, len(self._desk.waiting)
        return Stats(
            phase=self._life.phase,
            waiting=waiting,
            running=len(self._desk) - waiting,
            waiting_pixels=self._desk.waiting_pixels,
            drafts=len(self._drafts),
            draft_bytes=self._drafts.bytes,
            lanes=self._scheduler.lanes.stats(),
            buffer_bytes=sum(model.buffer_bytes for model in self._models),
            memory_bytes=self._budget,
            loaded_bytes=self._models.loaded_bytes,
            accepted=counts.accepted,
            done=counts.done,
            cancelled=counts.cancelled,
            failed=counts.failed,
            refused=dict(counts.refused),
            pictures=counts.pictures,
            pixels=counts.pixels,
            steps=counts.steps,
            calls=counts.calls,
            previews=counts.previews,
            nonfinite=counts.nonfinite,
            busy_seconds=counts.busy_seconds,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those that were taken; whether all have ended in time."""
        return self._life.drain(timeout)

    def close(self, *, wait: bool = False) -> None:
        """Stop, and free everything.

        Args:
            wait: Drain first. Else what is painted is cancelled, within a step.

        Raises:
            EngineError: A listener calls it.
        """
        _OPEN.discard(self)
        if self._life.stop(wait=wait):
            self._models.remember()
            self._models.close()
        self._drafts.clear()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- Requests ---

    def _see_open(self) -> None:
        """Refuse a request where nothing is painted any more."""
        if (refusal := self._life.refusal()) is not None:
            raise self._desk.refused(refusal)

    def _job(self, asked: ImageRequest, order: Order) -> Job:
        model, request = order.model, order.request
        manifest = model.bundle.manifest
        lengths = model.words.lengths(request, asked.prompt)
        ticket = Ticket(
            id=secrets.token_hex(16),
            asked=asked.without_pictures(),
            request=request,
            model=model.name,
            notes=order.notes,
            name=order.name,
            position=self._position,
            wish=self._wish,
        )
        return Job(
            number=next_number(),
            ticket=ticket,
            tables=model.plans.tables(request.plan),
            lengths=lengths,
            text_tokens=model.words.tokens(request, asked.prompt),
            cells_per_token=manifest.facts.patch**2,
            start=order.start,
            conditions=asked.conditions,
            deadline=order.deadline,
            draft=secrets.token_hex(16) if asked.draft else "",
            loras=order.loras,
        )

    def _ticket(self, asked: ImageRequest, like: Ticket) -> Ticket:
        return Ticket(
            id=secrets.token_hex(16),
            asked=asked,
            request=like.request,
            model=like.model,
            notes=like.notes,
            name=like.name,
            position=self._position,
            wish=self._wish,
        )

    def _taken(self, job: Job, seconds: float | None, hear: Hear | None) -> Ticket:
        """Put a job on the books, and let the scheduler have it."""
        wait = min(max(seconds or 0.0, _LEAST_RETRY_S), _MOST_RETRY_S)
        self._desk.take(job, wait)
        ticket = job.ticket
        if hear is not None:
            ticket.listen(hear)
        ticket.tell(self._position(ticket))
        self._scheduler.paint(job)
        if not self._life.live:  # it ended meanwhile, and nobody would end this request
            self._desk.fail(job, RefusedError("this server stops, and takes no more requests", code="draining"))
        return ticket

    def _position(self, ticket: Ticket) -> Queued:
        jobs = {job.ticket.id: job for job in self._desk.waiting}
        own = jobs.get(ticket.id)
        pixels = self._desk.waiting_pixels
        if own is None:
            return Queued(position=0, pixels=pixels, seconds=None)
        ahead = [job for job in self._desk.jobs if (job.deadline, job.number) < (own.deadline, own.number)]
        seconds = self._clerk.forecast.behind(
            ahead,
            self._models[ticket.model],
            own.painted,
            len(own.pieces),
            own.deadline,
            previews=ticket.asked.previews,
        )
        return Queued(position=sum(not job.begun for job in ahead), pixels=pixels, seconds=seconds)

    def _wish(self, ticket: Ticket, wish: str) -> None:
        job = self._desk.find(ticket.id)
        if job is not None:
            (self._scheduler.cancel if wish == "cancel" else self._scheduler.estimate)(job)

    def _declared(self) -> tuple[Size, ...]:
        """Sizes to be ready for.

        Raises:
            PlanError: The first model cannot paint one of them.
        """
        model = self._models.first
        defaults = model.bundle.manifest.facts.defaults
        sizes = self._options.sizes or ((defaults.height, defaults.width),)
        for height, width in sizes:
            request_from_options(model.bundle, Options(height=height, width=width))
        return sizes


_OPEN: WeakSet[Server] = WeakSet()
"""Servers that were not closed."""


@atexit.register
def _close_all() -> None:
    """A program that ends by an error in the middle of a step would else be aborted: the device's thread ends in it."""
    for server in list(_OPEN):
        server.close()


def _asked(loras: Mapping[str, str | Path | Lora]) -> dict[str, Lora]:
    """LoRAs by name, from files or from files and strengths.

    Raises:
        ModelError: A strength is not a finite number.
    """
    return {name: lora if isinstance(lora, Lora) else Lora.from_text(str(lora)) for name, lora in loras.items()}
