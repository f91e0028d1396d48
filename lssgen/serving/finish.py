"""What happens when a stage has ended: previews, drafts, finished pictures."""

from collections.abc import Callable
from time import monotonic

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lssgen.runtime.checking import Guard
from lssgen.runtime.origin import pasted
from lssgen.runtime.results import Picture
from lssgen.runtime.sampler import Floats, nonfinite
from lssgen.serving.api import PictureDone, Preview
from lssgen.serving.desk import Desk
from lssgen.serving.drafts import Drafts
from lssgen.serving.lane import Lane
from lssgen.serving.painter import Painter
from lssgen.serving.status import Observation
from lssgen.serving.work import Piece


class Finisher:
    """Sees to pictures that have ended a stage.

    Args:
        desk: The books.
        drafts: Where drafts are kept.
        guard: Hooks that every picture passes before anybody is told of it.
    """

    def __init__(self, desk: Desk, drafts: Drafts, guard: Guard) -> None:
        self._desk = desk
        self._drafts = drafts
        self._guard = guard

    def stage(self, piece: Piece, latent: Floats, shown: Floats, painter: Painter) -> bool:
        """A picture has ended a stage; whether it goes on to the next.

        Args:
            piece: The picture.
            latent: (C, h, w) that the stage left.
            shown: The clean latent to paint a picture from: the same, or where that is noisy an estimate.
            painter: Decodes.

        Raises:
            NonFiniteError: The latent holds NaN or infinity.
            EngineError: It cannot be decoded.
            CheckError: A checker refuses the picture, or a hook failed.
        """
        job, table = piece.job, piece.table
        if not np.isfinite(latent).all():
            raise nonfinite(
                job.plan, piece.stage, piece.turn, f"picture {piece.index} of the request", painter.precision
            )
        height, width = piece.size_px
        seconds = job.note("stage", piece.index, piece.stage_began, size=piece.size_px, steps=len(table.stage.steps))
        self._desk.observe(
            Observation(kind="stage", model=job.ticket.model, seconds=seconds, height_px=height, width_px=width)
        )
        piece.stage_began = 0.0
        if piece.stage + 1 == len(job.tables):
            self._finish(piece, latent, painter)
            return False
        if job.draft:
            self._keep(piece, latent, shown, painter)
            return False
        if job.ticket.asked.previews:
            self._show(piece, painter, "stage", shown)
        piece.next_stage(latent)
        return True

    def estimate(self, piece: Piece, lane: Lane, painter: Painter) -> None:
        """Show what a picture will be, as far as it can be told by now.

        Raises:
            EngineError: It cannot be decoded.
            CheckError: A checker refuses the picture, or a hook failed.
        """
        piece.wished = False
        latent = lane.estimate(piece)
        if latent is not None and np.isfinite(latent).all():
            self._show(piece, painter, "estimate", latent)

    def _finish(self, piece: Piece, latent: Floats, painter: Painter) -> None:
        job = piece.job
        pixels = self._timed(piece, "decode", lambda: painter.decode(piece, latent))
        self._done(piece, latent, Image.fromarray(pasted(pixels, job.start) if job.start else pixels))
        job.pixels += piece.size_px[0] * piece.size_px[1]
        if len(job.pictures) == len(job.pieces):
            self._desk.end(job)

    def _keep(self, piece: Piece, latent: Floats, shown: Floats, painter: Painter) -> None:
        """A draft ends here, and can go on from what it keeps."""
        job = piece.job
        image = Image.fromarray(self._timed(piece, "preview", lambda: painter.decode(piece, shown)))
        job.pixels += piece.size_px[0] * piece.size_px[1]
        self._done(piece, latent, image)
        piece.next_stage(latent)
        if len(job.pictures) == len(job.pieces):
            self._drafts.keep(job)
            self._desk.end(job)

    def _done(self, piece: Piece, latent: Floats, image: Image.Image) -> None:
        prompt = piece.job.ticket.asked.prompt
        (passed,) = self._guard([image], [prompt])
        negative = piece.job.request.negative_prompt
        piece.picture = Picture.of(passed, latent, prompt=prompt, negative_prompt=negative, seed=piece.seed)
        piece.job.ticket.tell(PictureDone(index=piece.index, picture=piece.picture))

    def _show(self, piece: Piece, painter: Painter, kind: str, latent: Floats) -> None:
        pixels = self._timed(piece, "preview", lambda: painter.decode(piece, latent))
        (passed,) = self._guard([Image.fromarray(pixels)], [piece.job.ticket.asked.prompt])
        self._desk.counts.previews += 1
        piece.job.ticket.tell(
            Preview(
                index=piece.index,
                kind="stage" if kind == "stage" else "estimate",
                stage=piece.stage,
                stages=len(piece.job.tables),
                step=piece.turn - 1,
                image=passed.image,
            )
        )

    def _timed(self, piece: Piece, name: str, work: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        began = monotonic()
        made = work()
        height, width = piece.size_px
        seconds = piece.job.note(name, piece.index, began, size=(height, width))
        if name == "preview":
            seen = Observation(
                kind="preview", model=piece.job.ticket.model, seconds=seconds, height_px=height, width_px=width
            )
            self._desk.observe(seen)
        return made
