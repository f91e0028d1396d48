"""Pictures that share engine calls: one latent size, one set of branches, one length of prompts; each at a step of its
own.

A lane has rows of buffers on the device. A picture takes a row when it joins, and gives it back when its stage is done,
or when it has to make way; as long as nobody comes or goes, a step moves nothing but the numbers of its rows. Rows
without a picture are zeros, and cannot be seen by the others: no operator of a step reads across pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lssgen.ports import Array
from lssgen.runtime.sampler import Floats
from lssgen.runtime.workspace import Geometry, Workspace
from lssgen.serving.model import Model
from lssgen.serving.work import Crowd, Piece


@dataclass(slots=True)
class _Device:
    """What a lane has on the device, and the numbers that it sends there.

    Attributes:
        space: Its buffers.
        numbers: (batch, 7 + K), the steps of the rows.
        weights: (branches, batch), their guidance.
        noise: (batch, C, h, w) in the noise buffer.
        turn: Steps since the buffers were filled.
    """

    space: Workspace
    numbers: Floats
    weights: Floats
    noise: Floats
    turn: int = 0


class Lane:
    """The rows of a crowd.

    Attributes:
        crowd: What its pictures have in common.
        rows: The picture of every row; None where it is free.
        share: Seconds of the device that its pictures had, each counted alone.
        passed: Times that another lane went first since its last step.
    """

    def __init__(self, crowd: Crowd, model: Model) -> None:
        self.crowd = crowd
        self.rows: list[Piece | None] = []
        self.share = 0.0
        self.passed = 0
        self._model = model
        self._device: _Device | None = None

    @property
    def pieces(self) -> list[Piece]:
        """The pictures on the device, in the order of their rows."""
        return [piece for piece in self.rows if piece is not None]

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def arrange(self, joining: Sequence[Piece], batch: int) -> None:
        """Let pictures join, in buffers for so many. What is on the device stays as it is, to the bit.

        Args:
            joining: Pictures at a step of their stage, with a latent that has entered it and perhaps with states.
            batch: At least as many as there are pictures then.

        Raises:
            EngineError: The buffers cannot be made. Those who have rows keep them, and nobody joins.
        """
        staying = self.pieces
        states = self._states(staying) if staying else {}
        everybody = [*staying, *joining]
        for row, piece in enumerate(staying):
            piece.states = {port: value[row] for port, value in states.items()}
        try:
            self._device = self._filled(everybody, batch)
        finally:
            for piece in staying:
                piece.states = None
        self.rows = [*everybody, *[None] * (batch - len(everybody))]
        for piece in joining:
            piece.states = None

    def leave(self, piece: Piece) -> None:
        """Free a picture's row; nothing of it is kept."""
        row = self.rows.index(piece)
        self.rows[row] = None
        self._on.numbers[row] = 0
        self._on.weights[:, row] = 0

    def park(self, piece: Piece) -> None:
        """Take a picture off the device, with what it needs to go on."""
        states = self._states([piece])
        piece.states = {port: value[0] for port, value in states.items()}
        self.leave(piece)

    def step(self) -> list[Piece]:
        """Ask the device for one step of every picture; whose they are. Returns before it is done, where it can.

        Raises:
            EngineError: The graph fails.
        """
        on, space = self._on, self._on.space
        pieces = self.pieces
        draws = False
        for row, piece in enumerate(self.rows):
            if piece is not None:
                table = piece.table
                on.numbers[row] = table.rows[piece.turn]
                on.weights[:, row] = table.weights[piece.turn]
                draws = self._draw(row, piece) or draws
        if draws:
            space.noise(0).write(on.noise)
        space.write_row(on.numbers)
        space.write_weights(self.crowd.branches, on.weights)
        space.step(0, on.turn, self.crowd.branches)()
        on.turn += 1
        for piece in pieces:
            piece.turn += 1
        if any(piece.job.origin is not None for piece in pieces):
            self._put_back()
        return pieces

    def latents(self, pieces: Sequence[Piece]) -> list[Floats]:
        """(C, h, w) latent of some pictures; waits for the device."""
        every = self._on.space.latent(0, self._on.turn).read()
        return [every[self.rows.index(piece)].copy() for piece in pieces]

    def estimate(self, piece: Piece) -> Floats | None:
        """(C, h, w) clean latent that a picture's last step moved towards; None where it cannot be told.

        Before the step x = a z + s e, after it x' = b z + t e, but for fresh noise: two equations for z.
        """
        stage, last = piece.table.stage, piece.turn - 1
        (a, s) = stage.levels[last - 1] if last else (stage.image, stage.noise)
        (b, t) = stage.levels[last]
        fresh = stage.steps[last].noise or 0.0
        t = max(t * t - fresh * fresh, 0.0) ** 0.5
        if piece.stage == 0 and not last and piece.job.origin is None:
            a = b if s == 1.0 and b == 0 else a  # pure noise: what little there is of a picture is in its level
        if abs(t * a - s * b) < 1e-6:
            return None
        row, on = self.rows.index(piece), self._on
        before, after = (on.space.latent(0, turn).read()[row] for turn in (on.turn - 1, on.turn))
        after = after - np.float32(fresh) * on.noise[row]
        return ((t * before - s * after) / (t * a - s * b)).astype(np.float32)

    def let_go(self) -> None:
        """Forget the buffers."""
        self.rows = []
        self._device = None

    @property
    def _on(self) -> "_Device":
        assert self._device is not None, "a lane that runs has rows"
        return self._device

    def _geometry(self, piece: Piece, batch: int) -> Geometry:
        assert piece.job.text is not None, "a picture is begun before it joins"
        return Geometry(
            sizes=((self.crowd.height, self.crowd.width),),
            batch=batch,
            text=tuple((port, value.shape) for port, value in piece.job.text["positive"].items()),
            scaling_space="",
            told=self.crowd.told,
            apart=("lane", *self.crowd.branches, *map(str, self.crowd.lengths)),
        )

    def _states(self, pieces: Sequence[Piece]) -> dict[str, Array]:
        states = self._on.space.read_states(0, self._on.turn, self.crowd.branches)
        rows = [self.rows.index(piece) for piece in pieces]
        return {port: value[rows] for port, value in states.items()}

    def _filled(self, pieces: Sequence[Piece], batch: int) -> "_Device":
        """Buffers with everything that a step reads besides its numbers."""
        branches = self.crowd.branches
        space = self._model.workspace(self._geometry(pieces[0], batch))
        space.write_states(0, 0, branches, _stacked([_states_of(piece, space, branches) for piece in pieces], batch))
        speakers = {"positive", *branches} - {"skip"}  # layers are left out of the positive prompt
        space.write_text(branches, {one: _stacked([_heard(piece, one) for piece in pieces], batch) for one in speakers})
        for feed in space.picture_feeds:
            values = _stacked([{"": piece.job.values[feed][piece.stage][0]} for piece in pieces], batch)
            space.write_picture(0, feed, values[""])
        scales = [(p.job.request.plan_options.guidance_scale, p.job.request.guidance_rescale) for p in pieces]
        told = np.zeros((2, batch), np.float32)
        told[:, : len(pieces)] = np.asarray(scales, np.float32).T
        space.write_guidance(*told)
        noise = np.zeros(space.noise(0).shape, np.float32)
        for row, piece in enumerate(pieces):
            if piece.drawn is not None:
                noise[row] = piece.drawn
        space.noise(0).write(noise)
        return _Device(
            space=space,
            numbers=np.zeros((batch, pieces[0].table.rows.shape[1]), np.float32),
            weights=np.zeros((len(branches), batch), np.float32),
            noise=noise,
        )

    def _draw(self, row: int, piece: Piece) -> bool:
        """Fresh noise for a step that draws it; whether it does."""
        if piece.table.stage.steps[piece.turn].noise is None:
            return False
        assert piece.stream is not None, "a picture is begun before it joins"
        piece.drawn = piece.stream.draw(self._on.noise.shape[1:])
        self._on.noise[row] = piece.drawn
        return True

    def _put_back(self) -> None:
        """Inpainting: what is kept of the pictures that runs start from, as noisy as the latents are by now."""
        buffer = self._on.space.latent(0, self._on.turn)
        latents = buffer.read()
        for row, piece in enumerate(self.rows):
            if piece is not None and piece.job.origin is not None and piece.job.origin.keeps(piece.stage):
                level = piece.table.stage.levels[piece.turn - 1]
                assert piece.noise is not None, "a picture that has entered a stage has its noise"
                latents[row] = piece.job.origin.put_back(piece.stage, level, piece.noise, latents[row])
        buffer.write(latents)


def _states_of(piece: Piece, space: Workspace, branches: Sequence[str]) -> dict[str, Array]:
    """A picture's states: those that it had, or those that its stage begins with."""
    assert piece.latent is not None, "a picture that joins has entered its stage"
    fresh = space.states_from(piece.latent, tuple(branches))
    if piece.states is None:
        return fresh
    same = {port: value for port, value in piece.states.items() if value.shape == fresh[port].shape}
    return {**fresh, **same}  # a state with a branch axis begins anew where the branches change


def _heard(piece: Piece, branch: str) -> dict[str, Array]:
    assert piece.job.text is not None, "a picture is begun before it joins"
    return dict(piece.job.text[branch])


def _stacked(each: Sequence[dict[str, Array]], batch: int) -> dict[str, Array]:
    """One array a port, (batch, ...): rows that nobody takes are zeros."""
    found: dict[str, Array] = {}
    for port, first in each[0].items():
        every = np.zeros((batch, *first.shape), first.dtype)
        for row, one in enumerate(each):
            every[row] = one[port]
        found[port] = every
    return found
