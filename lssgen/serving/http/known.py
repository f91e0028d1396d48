"""Which jobs there are, whose they are, and which were there once."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from lssgen.serving.http.jobs import Job
from lssgen.serving.http.keys import Client
from lssgen.serving.http.refusals import HttpError

PREVIEWS_S = 60.0
"""Seconds after its end for which a job's previews are kept, in memory, for those who still read them."""

MOST_REMEMBERED = 100_000
"""Jobs that are gone, which are told from those that never were."""


class Known:
    """The jobs that may be asked for. Belongs to one event loop.

    Args:
        seconds: Time that one is kept after its end.
        let_go: Called for a job that is kept no more.
    """

    def __init__(self, seconds: float, let_go: Callable[[Job], None]) -> None:
        self._seconds = seconds
        self._told = let_go
        self._jobs: dict[str, Job] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._keys: dict[tuple[str, str], tuple[str, asyncio.Task[Job]]] = {}

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    def add(self, job: Job) -> None:
        """A job that may be asked for."""
        self._jobs[job.id] = job

    def drop(self, job: Job) -> None:
        """One that may not after all."""
        self._jobs.pop(job.id, None)

    def find(self, name: str, client: Client) -> Job:
        """A job of a client's.

        Raises:
            HttpError: It is gone, or not the client's, or never was.
        """
        job = self._jobs.get(name)
        if job is None and name in self._gone:
            raise HttpError(
                "gone", f"job {name} is gone; it was kept for {self._seconds:g} s after its end", param="id"
            )
        if job is None or job.client.name != client.name:
            raise HttpError("not_found", f"there is no job {name[:64]!r}", param="id")
        return job

    def of(self, client: Client) -> list[Job]:
        """The jobs of a client, newest first."""
        own = [job for job in self._jobs.values() if job.client.name == client.name]
        return sorted(own, key=lambda job: -job.created)

    def let_go(self, job: Job) -> None:
        """Keep a job no more."""
        self.drop(job)
        self.forget_key(job)
        self.remember(job.id)
        self._told(job)

    def remember(self, name: str) -> None:
        """Know that there was a job of that name."""
        self._gone[name] = None
        while len(self._gone) > MOST_REMEMBERED:
            self._gone.popitem(last=False)

    def sweep(self) -> None:
        """Let go of what is too old."""
        now = time.time()
        too_old = now - self._seconds
        for job in self._jobs.values():
            if not job.open and job.ended < now - PREVIEWS_S:
                job.let_previews_go()
        for job in [job for job in self._jobs.values() if not job.open and job.ended < too_old]:
            self.let_go(job)
        for place, (_, task) in list(self._keys.items()):
            if task.done() and (task.exception() or (not (job := task.result()).open and job.ended < too_old)):
                self._keys.pop(place)

    # --- Repetitions ---

    def repeated(self, client: Client, key: str, digest: str) -> "asyncio.Task[Job] | None":
        """What an idempotency key has begun; None: nothing yet.

        Raises:
            HttpError: It was another request.
        """
        found = self._keys.get((client.name, key))
        if found is not None and found[0] != digest:
            message = "this idempotency key was used for another request; use a new one for each request"
            raise HttpError("idempotency_conflict", message, param="Idempotency-Key")
        return found[1] if found else None

    def begun(self, client: Client, key: str, digest: str, task: "asyncio.Task[Job]") -> None:
        """Know what an idempotency key begins."""
        self._keys[client.name, key] = (digest, task)

    def begun_before(self, job: Job) -> None:
        """Know the key of a job of an earlier run of the server."""
        if job.idempotency:

            async def itself() -> Job:
                return job

            self.begun(job.client, job.idempotency, job.digest, asyncio.create_task(itself()))

    def forget_key(self, job: Job) -> None:
        """Let the next request with a job's key be a new one."""
        self.free_key(job.client, job.idempotency)

    def free_key(self, client: Client, key: str) -> None:
        """The same, by the key."""
        self._keys.pop((client.name, key), None)
