"""What the owner of a server may choose: limits, sizes to be ready for, and the order in which work is done."""

from dataclasses import dataclass
from typing import Literal, get_args

from lssgen.choices import choice, refuse_outside
from lssgen.engines.demand import MOST_BATCH, Size
from lssgen.errors import PlanError
from lssgen.plan.options import MOST_PIXELS, MOST_SIDE_PX, MOST_STEPS

Rank = Literal["deadline", "share", "age"]
"""Rules that pictures are put in order by. "deadline": the earliest first, and those without one last. "share": those
who had least of the device, by time a picture. "age": the oldest request first."""

_LIMITS, _ORDER, _READY = "limits", "order of work", "what to be ready for"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Limits and policies of a server.

    Attributes:
        batches: Numbers of pictures that share an engine call; an engine has a profile for each. Rows are filled up to
            the next of them. The largest bounds how many are painted at a time at one size.
        sizes: (height, width) in pixels of pictures to be ready for: their engines are loaded, and their steps timed,
            before the server is ready; of every model that there is memory for, as far as it paints them. Empty: the
            default size of the first model.
        declared_only: Take these sizes only, so that nobody waits for an engine that is built.
        order: Rules by which pictures are painted next, the first that tells two apart.
        patience: Times that pictures may be passed over before they come first, whatever the order; so nothing starves.
        most_requests: Requests that may wait.
        most_queued_pixels: Pixels of all pictures that may wait; a request beyond it is refused, with a time to retry.
        most_pixels: Pixels of the largest picture that is taken.
        most_pictures: Pictures of one request.
        most_steps: Steps of the full schedule of one request.
        least_steps: Steps below which a deadline does not shorten a schedule; a bundle whose default has fewer keeps
            that.
        memory_gib: Memory for weights, buffers and pictures that wait in the middle, in GiB; 0: what is free at the
            start, less a tenth.
        draft_seconds: Time that drafts are kept.
        draft_mib: Memory of all drafts that are kept; the oldest go first.
        stuck_seconds: Time of one call of the device after which it is taken for stuck. Loading and building do not
            count.

    Raises:
        PlanError: A value outside its range.
    """

    batches: tuple[int, ...] = choice(
        (1, 2, 4, 8), help="pictures that share a call", metavar="N,...", least=1, most=MOST_BATCH, group=_READY
    )
    sizes: tuple[Size, ...] = choice(
        (),
        help="picture sizes to be ready for: 512,1024 or 768x512",
        least=1,
        most=MOST_SIDE_PX,
        group=_READY,
        unset="the first model's own",
    )
    declared_only: bool = choice(False, help="take these sizes only", group=_READY)
    order: tuple[Rank, ...] = choice(
        ("deadline", "share", "age"), help="what is painted next", metavar="RANK,...", group=_ORDER
    )
    patience: int = choice(8, help="times that pictures may be passed over", metavar="N", least=1, group=_ORDER)
    most_requests: int = choice(1000, help="requests that may wait", metavar="N", least=1, group=_LIMITS)
    most_queued_pixels: int = choice(2**28, help="pixels of all that waits", metavar="N", least=1, group=_LIMITS)
    most_pixels: int = choice(
        2**23, help="pixels of the largest picture", metavar="N", least=1, most=MOST_PIXELS, group=_LIMITS
    )
    most_pictures: int = choice(10, help="pictures of one request", metavar="N", least=1, most=10_000, group=_LIMITS)
    most_steps: int = choice(200, help="steps of one request", metavar="N", least=1, most=MOST_STEPS, group=_LIMITS)
    least_steps: int = choice(
        8, help="steps that a deadline leaves of a schedule", metavar="N", least=1, most=MOST_STEPS, group=_ORDER
    )
    memory_gib: float = choice(
        0.0, help="memory of weights and buffers, in GiB; 0: nine tenths of what is free", metavar="GIB", least=0,
        group=_LIMITS,
    )  # fmt: skip
    draft_seconds: float = choice(600.0, help="time that drafts are kept", metavar="S", least=0, group=_LIMITS)
    draft_mib: float = choice(1024.0, help="memory of all drafts", metavar="MIB", least=0, group=_LIMITS)
    stuck_seconds: float = choice(
        120.0, help="time of a call after which the device is taken for stuck", metavar="S", least=0.01, group=_LIMITS
    )

    def __post_init__(self) -> None:
        refuse_outside(self, PlanError)
        if not self.batches or sorted(set(self.batches)) != list(self.batches):
            raise PlanError(f"batches are {self.batches}; give rising numbers of pictures, such as 1,2,4,8")
        if not self.order or not set(self.order) <= set(get_args(Rank)):
            raise PlanError(f"order is {self.order}; it must be some of {', '.join(get_args(Rank))}")
