"""From a request as it came to one that the engine room is asked, with what only the room knows."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from lssgen.errors import RefusedError
from lssgen.serving.api import ImageRequest
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.orders import Asked, Order, at_size_of_its_picture, order_from
from lssgen.serving.http.refusals import HttpError
from lssgen.serving.server import Server
from lssgen.serving.status import ModelInfo

T = TypeVar("T")


class Reader:
    """Reads requests. Belongs to one event loop.

    Args:
        room: The server of the engine room.
        limits: What is taken.
        threads: Where reading is done, which costs milliseconds.
    """

    def __init__(self, room: Server, limits: Limits, threads: Executor) -> None:
        self._room = room
        self._limits = limits
        self._threads = threads
        self._making = ThreadPoolExecutor(1, "styles")  # of its own: merging a LoRA takes as long as it takes
        self._steps: dict[str, int] = {}

    async def understood(self, asked: Asked) -> Order:
        """A request as the engine room is asked.

        Raises:
            HttpError, LssgenError: It makes no sense, or cannot be done.
        """
        model = await self.model(asked.fields.model or "")
        steps = await self._steps_of(model)
        order = await self._in_thread(order_from, asked, model, steps, self._limits)
        order = await self._at_own_size(order, model)
        return await self._with_estimates(order)

    async def model(self, name: str) -> ModelInfo:
        """The model of a name; the first, where there is none.

        Raises:
            HttpError, LssgenError: There is no such model, or it cannot be had.
        """
        models = self._room.models()
        known = next((one for one in models if name in ("", one.name, *one.aliases)), None)
        if known is not None and known.folder:
            return known
        if not any(name.startswith(f"{one}@") for model in models for one in (model.name, *model.aliases)):
            there = ", ".join(model.name for model in models)
            raise HttpError("model_not_found", f"there is no model {name[:64]!r}, but {there}", param="model")
        return await asyncio.get_running_loop().run_in_executor(self._making, self._room.model, name)

    def close(self) -> None:
        """End the thread that makes models."""
        self._making.shutdown(wait=False, cancel_futures=True)

    async def _steps_of(self, model: ModelInfo) -> int:
        """Steps that a model takes of itself."""
        if model.name not in self._steps:
            quote = await self._in_thread(self._room.quote, ImageRequest(prompt="", model=model.name))
            self._steps[model.name] = quote.request.plan_options.num_inference_steps
        return self._steps[model.name]

    async def _at_own_size(self, order: Order, model: ModelInfo) -> Order:
        """An edit without a size has that of its picture, where it can be painted; else the model's own."""
        own = at_size_of_its_picture(order, model)
        if own is None:
            return order
        try:
            await self._in_thread(self._room.quote, own.room)
        except RefusedError:
            return order
        return own

    async def _with_estimates(self, order: Order) -> Order:
        """Ask for so many estimates that, with the pictures of the small stages, there are as many as are wanted."""
        if not order.partials:
            return order
        plan = (await self._in_thread(self._room.quote, order.room)).request.plan
        missing = order.partials - (len(plan.stages) - 1)
        if missing <= 0:
            return order
        every = max(1, plan.evaluations // (missing + 1))
        return replace(order, room=replace(order.room, estimate_every=every))

    async def _in_thread(self, work: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
