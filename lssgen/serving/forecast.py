"""When a request will be done, behind what the server has taken: an estimate from measured step times."""

from collections import Counter
from collections.abc import Sequence
from math import ceil

from lssgen.plan import Plan
from lssgen.serving.memory import fitting
from lssgen.serving.model import Model
from lssgen.serving.models import Models
from lssgen.serving.work import Job


class Forecast:
    """Estimates for one server.

    Args:
        models: With their times.
        batches: Numbers of pictures that share a call.
    """

    def __init__(self, models: Models, batches: Sequence[int]) -> None:
        self._models = models
        self._batches = batches

    def alone(self, model: Model, plan: Plan, pictures: int, *, previews: bool = False) -> float | None:
        """Seconds of a request on a device with nothing else to do; None where nothing was timed yet."""
        most = self._batches[-1]
        rounds = ceil(pictures / most)
        one = model.times.run(plan, fitting(min(pictures, most), self._batches), pictures, previews=previews)
        return None if one is None else rounds * one

    def behind(
        self,
        jobs: Sequence[Job],
        model: Model,
        plan: Plan,
        pictures: int,
        deadline: float,
        *,
        previews: bool = False,
    ) -> float | None:
        """Seconds until a request is done, if it comes now.

        Those of its own last size share its calls, and fill its lane round by round; the work of all others that go
        before it is done first.

        Args:
            jobs: What was taken.
            model: Model of the request.
            plan: What is painted of its run.
            pictures: Number of its pictures.
            deadline: Its deadline, on the clock of `time.monotonic`; infinity: none.
            previews: Whether every stage is decoded.
        """
        most = self._batches[-1]
        before = [job for job in jobs if job.deadline <= deadline]
        size = (model.name, plan.stages[-1].height, plan.stages[-1].width)
        crowds = Counter[tuple[str, int, int]]()
        for job in before:
            crowds[_size(job)] += len(job.pieces)
        together = crowds[size] + pictures
        one = model.times.run(plan, fitting(min(together, most), self._batches), pictures, previews=previews)
        if one is None:
            return None
        rounds = ceil(together / most)
        return rounds * one + sum(self._left(job, crowds[_size(job)]) for job in before if _size(job) != size)

    def _left(self, job: Job, crowd: int) -> float:
        """Seconds of the device that a request still takes, where so many pictures share its calls."""
        shared = fitting(min(crowd, self._batches[-1]), self._batches)
        whole = self._models[job.ticket.model].times.run(job.painted, shared, len(job.pieces))
        total = job.total
        return 0.0 if whole is None else whole * len(job.pieces) / shared * (total - job.steps) / max(total, 1)


def _size(job: Job) -> tuple[str, int, int]:
    return (job.ticket.model, job.painted.stages[-1].height, job.painted.stages[-1].width)
