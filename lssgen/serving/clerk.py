"""From a request to a job, or to a refusal that says what is wrong; all of it in the caller's thread."""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import inf, isfinite
from numbers import Real
from time import monotonic
from typing import cast

from lssgen.engines.demand import Size
from lssgen.errors import LssgenError, RefusedError
from lssgen.plan import Plan
from lssgen.runtime.advice import Advice
from lssgen.runtime.asking import asked_run, unheard
from lssgen.runtime.candidates import Candidate, best_within, candidates
from lssgen.runtime.loras import Adapter
from lssgen.runtime.noise import check_seed
from lssgen.runtime.options import Options, Request
from lssgen.runtime.origin import Start
from lssgen.runtime.text import see_prompt
from lssgen.serving.api import ImageRequest, RefusalCode
from lssgen.serving.desk import Desk
from lssgen.serving.drafts import Drafts
from lssgen.serving.forecast import Forecast
from lssgen.serving.lanes import Lanes
from lssgen.serving.model import Model
from lssgen.serving.models import Models
from lssgen.serving.options import ServerOptions
from lssgen.serving.work import Job

OURS: Mapping[str, str] = {
    "num_images": "say how many pictures with n",
    "batch": "the server chooses it",
    "loras": "ask for a model with one, as in sd3@style; the server's owner names them",
}
"""Words of a run that are not a request's, and what to do instead. Files are the server's, and no caller's to name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request that can be painted.

    Attributes:
        model: Model that paints it.
        name: Name of the model with its LoRA.
        loras: LoRAs in its slots.
        request, start: The run, and the picture that it starts from.
        pictures: Their number.
        seconds, alone, fastest: Estimates, as in `lssgen.serving.api.Quote`.
        deadline: Moment, on the clock of `time.monotonic`.
        notes: Sentences that the caller should read.
    """

    model: Model
    name: str
    loras: tuple[Adapter, ...]
    request: Request
    start: Start | None
    pictures: int
    seconds: float | None
    alone: float | None
    fastest: float | None
    deadline: float
    notes: tuple[str, ...]


class Clerk:
    """Reads requests.

    Args:
        models: What there is to paint with.
        desk: The books, which say what waits.
        drafts: Drafts that can be refined.
        lanes: Say how much memory a picture takes.
        options: Limits.
        budget: Bytes that weights and buffers may take.
        sizes: (height, width) in pixels of pictures that the server is ready for.
    """

    def __init__(
        self,
        models: Models,
        desk: Desk,
        drafts: Drafts,
        lanes: Lanes,
        options: ServerOptions,
        budget: int,
        sizes: Sequence[Size],
    ) -> None:
        self._models = models
        self._desk = desk
        self._drafts = drafts
        self._lanes = lanes
        self._options = options
        self._budget = budget
        self._sizes = sizes
        self.forecast = Forecast(models, options.batches)

    def read(self, asked: ImageRequest) -> Order:
        """See what a request wants, choose its schedule, and see that it can be had.

        Raises:
            RefusedError: It cannot, or not in time.
        """
        try:
            return self._read(asked)
        except RefusedError as error:
            raise self._desk.refused(error) from error.__cause__
        except LssgenError as error:
            raise self._desk.refused(_refusal(str(error), "invalid_value", param_of(str(error)))) from error

    def draft(self, draft: str, keep: Sequence[int]) -> Job:
        """The draft that some pictures are to be kept of.

        Raises:
            RefusedError: There is no such draft, or it has no such pictures.
        """
        old, most = self._drafts.get(draft), self._options.most_pictures
        if old is None:
            fault = _refusal(
                f"there is no draft {draft[:80]!r}; one is kept for {self._options.draft_seconds:g} s, as far as "
                "memory reaches: draw it again",
                "unknown_draft",
                "draft",
            )
        elif not keep or any(isinstance(index, bool) or index not in range(len(old.pieces)) for index in keep):
            fault = _refusal(
                f"keep is {list(keep)[:20]}; give some of the draft's pictures, 0 to {len(old.pieces) - 1}",
                param="keep",
            )
        elif len(keep) > most:
            fault = _refusal(f"keep has {len(keep)} entries; this server takes {most}", "too_large", "keep")
        else:
            return old
        raise self._desk.refused(fault)

    def milliseconds(self, value: float | None, name: str) -> float | None:
        """A time, if it is one.

        Raises:
            RefusedError: It is not.
        """
        number = isinstance(cast(object, value), Real) and not isinstance(value, bool)
        if value is not None and not (number and isfinite(value) and value > 0):
            raise _refusal(f"{name} is {_shown(value)}; it must be a number of milliseconds above 0", param=name)
        return value

    def seconds_left(self, job: Job) -> float | None:
        """Estimated seconds until a job is done whose schedule stays as it is; None where nothing was measured yet.

        Raises:
            RefusedError: Its deadline is earlier.
        """
        asked = job.ticket.asked
        model, count = self._models[job.ticket.model], len(job.pieces)
        seconds = self.forecast.behind(
            self._desk.jobs, model, job.painted, count, job.deadline, previews=asked.previews
        )
        if asked.deadline_ms is None or seconds is None or seconds <= asked.deadline_ms / 1e3:
            return seconds
        fault = RefusedError(
            f"deadline_ms is {asked.deadline_ms:g}, but what is left of the draft takes {1e3 * seconds:.0f} ms here; "
            "give it more time, or keep fewer pictures",
            code="deadline_impossible",
            param="deadline_ms",
            fastest_ms=1e3 * seconds,
        )
        raise self._desk.refused(fault)

    def _read(self, asked: ImageRequest) -> Order:
        style = self._models.find(_text(asked.model, "model"))
        model = style.model
        self._see(asked)
        see_prompt(asked.prompt)
        options = self._seeded(asked)
        # A draft is the first of several stages: who asks for one asks for stages.
        advice = Advice(options) if asked.draft else model.advice(options)
        starts: dict[int, Start | None] = {}

        def make(words: Options) -> Request:
            pictures = (asked.init_image, asked.mask_image, asked.conditions)
            with_loras = cast(Options, {**words, "loras": style.loras})
            request, start = asked_run(model.bundle, with_loras, *pictures, model.plans.make)
            starts[id(request)] = start
            return request

        deadline = inf if asked.deadline_ms is None else monotonic() + asked.deadline_ms / 1e3
        chosen, fastest = self._chosen(asked, model, advice.options, make, deadline)
        request = chosen.request
        self._see_size(request, asked, model)
        check_seed(request.seed + asked.n - 1)
        plan, jobs = _painted(request, asked), self._desk.jobs
        return Order(
            model=model,
            name=style.name,
            loras=model.loras.read(request.loras, len(request.plan.stages)),
            request=request,
            start=starts[id(request)],
            pictures=asked.n,
            seconds=self.forecast.behind(jobs, model, plan, asked.n, deadline, previews=asked.previews),
            alone=self.forecast.alone(model, plan, asked.n, previews=asked.previews),
            fastest=fastest,
            deadline=deadline,
            notes=(*self._notes(asked, model, chosen), *advice.notes),
        )

    def _notes(self, asked: ImageRequest, model: Model, chosen: Candidate) -> tuple[str, ...]:
        shortened = [f"the schedule was changed to be done in time: {chosen.change}"] if chosen.change else []
        request = chosen.request
        lost = model.words.losses(request, asked.prompt)
        return (*request.plan.notes, *unheard(request, [asked.prompt]), *lost, *shortened)

    def _seeded(self, asked: ImageRequest) -> Options:
        options = {name: value for name, value in asked.options.items() if value is not None}
        options.setdefault("seed", secrets.randbelow(2**32 - self._options.most_pictures))
        return cast(Options, options)

    def _see(self, asked: ImageRequest) -> None:
        """Refuse what no plan looks at."""
        most = self._options.most_pictures
        _whole(asked.n, "n", 1, most, "pictures of one request")
        _whole(asked.estimate_every, "estimate_every", 0, self._options.most_steps, "steps")
        for name in ("deadline_ms", "max_latency_ms"):
            self.milliseconds(getattr(asked, name), name)
        for name, said in OURS.items():
            if asked.options.get(name) is not None:
                raise _refusal(f"{name} cannot be chosen for a request: {said}", param=name)

    def _chosen(
        self,
        asked: ImageRequest,
        model: Model,
        options: Options,
        make: Callable[[Options], Request],
        deadline: float,
    ) -> tuple[Candidate, float | None]:
        """The schedule, and the seconds of the fastest.

        Raises:
            RefusedError: None fits.
        """

        def alone(request: Request) -> float | None:
            return self.forecast.alone(model, _painted(request, asked), asked.n, previews=asked.previews)

        if asked.deadline_ms is None and asked.max_latency_ms is None:
            request = make(options)
            return Candidate(request, None), None
        jobs = self._desk.jobs

        def behind(request: Request) -> float | None:
            return self.forecast.behind(
                jobs, model, _painted(request, asked), asked.n, deadline, previews=asked.previews
            )

        found = list(candidates(make, options, alone, self._options.least_steps, model.searched))
        fastest = min((one.seconds for one in found if one.seconds is not None), default=None)
        if asked.max_latency_ms is not None:
            found = self._within(found, asked.max_latency_ms, "max_latency_ms", fastest)
        if asked.deadline_ms is not None:
            found = [replace(one, seconds=behind(one.request)) for one in found]
            quickest = min((one.seconds for one in found if one.seconds is not None), default=None)
            found = self._within(found, asked.deadline_ms, "deadline_ms", quickest)
        return found[0], fastest

    def _within(self, found: list[Candidate], budget_ms: float, param: str, fastest: float | None) -> list[Candidate]:
        """The best candidate that fits, first of all that fit.

        Raises:
            RefusedError: None does.
        """
        best, _ = best_within(iter(found), budget_ms / 1e3)
        if best is None:
            took = 1e3 * (fastest or 0.0)
            raise RefusedError(
                f"{param} is {budget_ms:g}, but the fastest schedule takes {took:.0f} ms here; give it more time, or "
                "ask for a smaller picture",
                code="deadline_impossible",
                param=param,
                fastest_ms=took,
            )
        rest = [one for one in found if one is not best and (one.seconds or 0.0) <= budget_ms / 1e3]
        return [best, *rest]

    def _see_size(self, request: Request, asked: ImageRequest, model: Model) -> None:
        """Refuse what is larger than this server takes, or than its memory."""
        plan, options = request.plan, self._options
        pixels, steps = plan.height_px * plan.width_px, request.plan_options.requested_steps
        if pixels > options.most_pixels:
            raise _refusal(
                f"a picture of {plan.width_px} x {plan.height_px} px was asked for; this server paints up to "
                f"{options.most_pixels:,} pixels, as in {_square(options.most_pixels)}",
                "too_large",
                "size",
            )
        if options.declared_only and (plan.height_px, plan.width_px) not in self._sizes:
            known = ", ".join(f"{width} x {height}" for height, width in self._sizes)
            raise _refusal(
                f"{plan.width_px} x {plan.height_px} px is not a size that this server is ready for: {known}",
                param="size",
            )
        if steps > options.most_steps:
            raise _refusal(
                f"num_inference_steps is {steps}; this server takes up to {options.most_steps}",
                "too_large",
                "num_inference_steps",
            )
        if asked.draft and len(plan.stages) == 1:
            raise _refusal(
                f"a draft is the first of several stages, but {plan.width_px} x {plan.height_px} px are painted in "
                "one; ask for a larger picture, or a smaller min_resolution",
                param="draft",
            )
        self._see_memory(request, model)

    def _see_memory(self, request: Request, model: Model) -> None:
        stage = request.plan.stages[-1]
        branches = max(len(step.guidance) for step in stage.steps)
        need = model.bytes + self._lanes.picture_bytes(model, (stage.height, stage.width), branches)
        if need > self._budget:
            raise _refusal(
                f"a picture of {request.plan.width_px} x {request.plan.height_px} px takes {need / 1e6:.0f} MB with "
                f"{model.name}'s weights; this server has {self._budget / 1e6:.0f} MB: ask for a smaller picture",
                "no_memory",
                "size",
            )


_NUMBERS = count(1)


def next_number() -> int:
    """The next number in the order of arrival."""
    return next(_NUMBERS)


SIGNS: Sequence[tuple[str, str]] = (
    (r"belong to a picture to start from", "init_image"),
    (r"in conditions$|the control picture is|so a control picture", "conditions"),
    (r"\bmask\b", "mask_image"),
    (r"negative prompt", "negative_prompt"),
    (r"needs sides|sides of at least|below min_resolution|knows positions|^a picture of \d", "size"),
)
"""Patterns by which messages speak of words that they do not name, and these words."""

OTHERS: Sequence[tuple[str, str]] = (
    (r"skip-layer|layers cannot be skipped", "skip_layers"),
    (r"custom sigmas", "sigmas"),
    (r"prompt", "prompt"),
    (r"step", "num_inference_steps"),
    (r"solver", "solver"),
    (r"scheduler|timestep|sigma", "scheduler"),
    (r"picture", "init_image"),
)
"""The same, for messages that name no word at their beginning either."""

WORDS = (*Options.__annotations__, "prompt", "init_image", "mask_image", "conditions")


def param_of(message: str) -> str | None:
    """The word of a request that a message is about: one that it names before its advice, or speaks of."""
    if unknown := re.match(r"unknown option '([^']*)'", message):
        return unknown[1]
    head = re.split("[;:]", message, maxsplit=1)[0]
    spoken = _first(SIGNS, message)
    named = [word for word in WORDS if re.search(rf"\b{word}\b", head)]
    return spoken or min(named, key=head.index, default=None) or _first(OTHERS, message)


def _first(signs: Sequence[tuple[str, str]], message: str) -> str | None:
    return next((word for pattern, word in signs if re.search(pattern, message)), None)


def _painted(request: Request, asked: ImageRequest) -> Plan:
    """What of a run is painted."""
    return replace(request.plan, stages=request.plan.stages[:1]) if asked.draft else request.plan


def _refusal(message: str, code: RefusalCode = "invalid_value", param: str | None = None) -> RefusedError:
    return RefusedError(message, code=code, param=param)


def _whole(value: object, name: str, least: int, most: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _refusal(f"{name} is {_shown(value)}; it must be a whole number from {least} to {most}", param=name)
    if value > most:
        raise _refusal(f"{name} is {_shown(value)}; this server takes {least} to {most} {what}", "too_large", name)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _refusal(f"{name} is {_shown(value)}; it must be a text", param=name)
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _square(pixels: int) -> str:
    side = int(pixels**0.5)
    return f"{side} x {side}"
