"""The life of a server: its thread, which warms up, works and may break, and the phases that it goes through."""

import logging
import os
from collections.abc import Sequence
from threading import Condition, Thread, current_thread

from lssgen.engines.base import Backend
from lssgen.engines.demand import Size
from lssgen.errors import CancelledError, EngineError, LssgenError, RefusedError
from lssgen.serving.desk import Desk
from lssgen.serving.memory import Scratch
from lssgen.serving.model import Model
from lssgen.serving.models import Models
from lssgen.serving.options import ServerOptions
from lssgen.serving.scheduler import Scheduler
from lssgen.serving.status import Phase
from lssgen.serving.warm import Warmer, paints
from lssgen.serving.watch import Watch

_LOG = logging.getLogger("lssgen")


class Life:
    """Begins and ends the scheduler's work, in a thread that has the device.

    Args:
        backend: The device.
        models: What to be ready with.
        desk: The books; what is on them ends where the work does.
        scheduler: Works.
        options: Limits.
        budget: Bytes that weights and buffers may take.
        sizes: (height, width) in pixels of pictures to be ready for.
    """

    def __init__(
        self,
        backend: Backend,
        models: Models,
        desk: Desk,
        scheduler: Scheduler,
        options: ServerOptions,
        budget: int,
        sizes: Sequence[Size],
    ) -> None:
        self._backend = backend
        self._models = models
        self._desk = desk
        self._scheduler = scheduler
        self._batches = options.batches
        self._budget = budget
        self._sizes = sizes
        self._phase: Phase = "starting"
        self._fault: LssgenError | None = None
        self._process = 0
        self._changed = Condition()
        self._watch = Watch(lambda: scheduler.busy_since, options.stuck_seconds, self._is_stuck, self._is_free)
        self._thread = Thread(target=self._work, name="lssgen-scheduler", daemon=True)

    @property
    def phase(self) -> Phase:
        """What the server is doing."""
        return self._phase

    @property
    def live(self) -> bool:
        """Whether it works at all."""
        return self._phase in ("starting", "ready", "draining")

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._process = os.getpid()
        self._thread.start()
        self._watch.start()

    def wait_ready(self, timeout: float | None) -> bool:
        """Wait until it is warm; whether it is, in time.

        Raises:
            BundleError, EngineError, PlanError: What kept it from becoming so.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._phase != "starting", timeout)
        if self._fault is not None:
            raise self._fault
        return self._phase == "ready"

    def refusal(self) -> RefusedError | None:
        """Why nothing is taken now; None: it is."""
        if self._process != os.getpid():  # a fork has no thread but the one that forked
            message = "this process was forked from the server's; open one of its own, or fork before"
            return RefusedError(message, code="device_stuck")
        if self._phase in ("draining", "closed"):
            return RefusedError("this server stops, and takes no more requests", code="draining")
        if self._phase in ("stuck", "broken"):
            said = f"the device does not work ({self._fault})" if self._fault else "the device does not answer"
            return RefusedError(f"{said}; start the server again", code="device_stuck")
        return None

    def drain(self, timeout: float | None) -> bool:
        """Take no more, and wait for what was taken; whether all of it has ended in time.

        Raises:
            EngineError: The thread itself asks.
        """
        self.see_elsewhere("drained")
        if self.live:
            self._enter("draining")
        return self._desk.wait_empty(timeout)

    def stop(self, *, wait: bool) -> bool:
        """End, once; whether the device is free, so that what is on it can be.

        Args:
            wait: Drain first.

        Raises:
            EngineError: The thread itself asks.
        """
        if self._phase == "closed":
            return False
        self.see_elsewhere("closed")
        if wait:
            self.drain(None)
        stuck = self._phase == "stuck"
        self._enter("closed")
        self._scheduler.stop()
        if not stuck:  # a device that does not answer keeps its thread, which ends with the process
            self._thread.join()
        self._watch.stop()
        self._desk.fail_all(CancelledError("the server was closed"))
        return not stuck

    def see_elsewhere(self, done: str) -> None:
        """Refuse to wait in the thread that is waited for.

        Args:
            done: What the server cannot be there: "closed".

        Raises:
            EngineError: The thread itself asks.
        """
        if current_thread() is self._thread:
            raise EngineError(f"a server cannot be {done} by a listener, whom it waits for; do it in another thread")

    # --- The thread ---

    def _work(self) -> None:
        try:
            self._warm_up()
            if self._phase == "starting":
                self._enter("ready")
            self._scheduler.run()
        except LssgenError as error:
            self._break(error)
        except BaseException as error:  # whatever it is, nobody may wait for a thread that has ended
            _LOG.exception("the scheduler met a mistake of lssgen's")
            self._break(EngineError(f"the server met a mistake of its own: {type(error).__name__}: {error}"))
        finally:
            self._scheduler.end()

    def _warm_up(self) -> None:
        """Warm the first model, and others as far as there is memory for all of them.

        Raises:
            BundleError, EngineError: The first cannot be loaded or run.
        """
        for model in self._models:
            if self._models.loaded_bytes + model.bytes > self._budget and model is not self._models.first:
                return
            try:
                self._warm(model)
            except LssgenError as error:
                if model is self._models.first:
                    raise
                _LOG.warning(
                    "%s is not ready for requests, and will be tried again with the first: %s", model.name, error
                )

    def _warm(self, model: Model) -> None:
        lanes = self._scheduler.lanes
        warmer = Warmer(
            backend=self._backend,
            batches=self._batches,
            painter=self._scheduler.painter,
            scratch=lanes.scratch.setdefault(model.name, Scratch()),
            most_batch=lambda size, branches: lanes.most(model, size, branches),
        )
        for size in self._sizes:
            if self._phase == "closed":
                return
            if paints(model, size):
                warmer.run(model, size)

    def _break(self, error: LssgenError) -> None:
        self._fault = error
        self._enter("broken")
        self._desk.fail_all(error)

    # --- The watch ---

    def _is_stuck(self, seconds: float) -> None:
        _LOG.error("the device has not answered for %.0f s; all requests end", seconds)
        self._enter("stuck")
        said = f"the device has not answered for {seconds:.0f} s; the request was given up"
        self._desk.fail_all(RefusedError(said, code="device_stuck"))

    def _is_free(self) -> None:
        _LOG.warning("the device answers again")
        self._scheduler.forget_ended()
        if self._phase == "stuck":
            self._enter("ready")

    def _enter(self, phase: Phase) -> None:
        with self._changed:
            if self._phase != "closed":
                self._phase = phase
            self._changed.notify_all()
