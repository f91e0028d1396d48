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
from lssgen.runtime.workspace import Branches, Geometry, Workspace
from lssgen.serving.model import Model
from lssgen.serving.work import Crowd, Piece


@dataclass(slots=True)
class _Device:
    """What a lane has on the device, and the numbers that it sends there.

    Attributes:
        space: Its buffers.
        numbers: (batch, 7 + K), the steps of the rows.
        weights: (branches, batch), their guidance.
        scales: (2, batch), their guidance scales and shares of rescaled guidance.
        loras: (batch, ranks), their strengths of what is in the slots for LoRAs.
        turn: Steps since the buffers were taken.
    """

    space: Workspace
    numbers: Floats
    weights: Floats
    scales: Floats
    loras: Floats
    turn: int = 0


class Lane:
    """The rows of a crowd.

    Attributes:
        crowd: Traits that its pictures have in common.
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
        if batch != self.batch:
            self._move([*self.pieces, *joining], batch)
        free = (row for row, piece in enumerate(self.rows) if piece is None)
        for piece, row in zip(joining, free, strict=False):
            self._put(self._on, row, piece)
            self.rows[row] = piece
            piece.states = None
        self._on.space.write_guidance(*self._on.scales)
        self._on.space.write_loras(self._on.loras)

    def leave(self, piece: Piece) -> None:
        """Free a picture's row; nothing of it is kept."""
        row = self.rows.index(piece)
        self.rows[row] = None
        self._on.numbers[row] = 0
        self._on.weights[:, row] = 0
        self._on.loras[row] = 0

    def park(self, piece: Piece) -> None:
        """Take a picture off the device, with what it needs to go on."""
        piece.states = self._states(piece)
        self.leave(piece)

    def step(self) -> list[Piece]:
        """Ask the device for one step of every picture; whose they are. Returns before it is done, where it can.

        Raises:
            EngineError: The graph fails.
        """
        on, space = self._on, self._on.space
        pieces = self.pieces
        for row, piece in enumerate(self.rows):
            if piece is not None:
                table = piece.table
                on.numbers[row] = table.rows[piece.turn]
                on.weights[:, row] = table.weights[piece.turn]
                if table.draws[piece.turn]:
                    self._draw(row, piece)
        space.write_row(on.numbers)
        space.write_weights(self.crowd.branches, on.weights)
        space.step(0, on.turn, self.crowd.branches)()
        on.turn += 1
        for piece in pieces:
            piece.turn += 1
            if piece.job.origin is not None:
                self._put_back(piece)
        return pieces

    def latent(self, piece: Piece) -> Floats:
        """(C, h, w) latent of a picture; waits for the device."""
        return self._on.space.take_latent(0, self._on.turn, self.rows.index(piece))

    def estimate(self, piece: Piece) -> Floats | None:
        """(C, h, w) clean latent that a picture's last step moved towards; None where it cannot be told."""
        row, on = self.rows.index(piece), self._on
        before, after = (on.space.take_latent(0, turn, row) for turn in (on.turn - 1, on.turn))
        return piece.table.stage.estimate(piece.turn - 1, before, after, piece.drawn)

    def shown(self, piece: Piece) -> Floats:
        """(C, h, w) latent to paint a picture from that has ended its stage: its own, or where that is noisy, what its
        last step moved towards."""
        found = self.estimate(piece) if piece.job.plan.keeps_state(piece.stage) else None
        return self.latent(piece) if found is None else found

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

    def _states(self, piece: Piece) -> dict[str, Array]:
        on = self._on
        return on.space.take_states(0, on.turn, self.crowd.branches, self.rows.index(piece))

    def _move(self, pieces: Sequence[Piece], batch: int) -> None:
        """Go on in other buffers, with those who have rows; the others are heard of for their text's shape."""
        staying = self.pieces
        space = self._model.workspace(self._geometry(pieces[0], batch))
        device = _Device(
            space=space,
            numbers=np.zeros((batch, pieces[0].table.rows.shape[1]), np.float32),
            weights=np.zeros((len(self.crowd.branches), batch), np.float32),
            scales=np.zeros((2, batch), np.float32),
            loras=np.zeros((batch, self._model.loras.ranks), np.float32),
        )
        self._make(device)
        for row, piece in enumerate(staying):
            piece.states = self._states(piece)
            self._put(device, row, piece)
            piece.states = None
        self.rows = [*staying, *[None] * (batch - len(staying))]
        self._device = device

    def _make(self, device: _Device) -> None:
        """Make the buffers that steps will need, while those that are in use are there still.

        Raises:
            EngineError: There is no room for them.
        """
        for turn in (0, 1):
            device.space.step(0, turn, self.crowd.branches)
        device.space.noise(0)

    def _put(self, device: _Device, row: int, piece: Piece) -> None:
        """Write what a picture's steps read besides their numbers and noise, which come with each. Rows that nobody
        takes are not cleared: no operator of a step reads across pictures, and whoever takes one writes all of it."""
        space, branches, job = device.space, self.crowd.branches, piece.job
        assert job.text is not None, "a picture is begun before it joins"
        space.put_states(0, device.turn, branches, row, _states_of(piece, space, branches))
        space.put_text(branches, row, job.text)
        for feed, values in job.values.items():  # a control picture that is off is not among them
            space.put_picture(0, feed, row, values[piece.stage][0])
        device.loras[row] = self._model.loras.weights(job.loras, piece.stage)
        device.scales[:, row] = job.request.plan_options.guidance_scale, job.request.guidance_rescale

    def _draw(self, row: int, piece: Piece) -> None:
        """Fresh noise for a step that takes it."""
        assert piece.stream is not None, "a picture is begun before it joins"
        piece.drawn = piece.stream.draw(self._on.space.noise(0).shape[1:])
        self._on.space.put_noise(0, row, piece.drawn)

    def _put_back(self, piece: Piece) -> None:
        """Inpainting: what is kept of the picture that a run starts from, as noisy as the latent is by now."""
        origin, row, on = piece.job.origin, self.rows.index(piece), self._on
        if origin is None or not origin.keeps(piece.stage):
            return
        assert piece.noise is not None, "a picture that has entered a stage has its noise"
        level = piece.table.stage.levels[piece.turn - 1]
        latent = on.space.take_latent(0, on.turn, row)
        on.space.put_latent(0, on.turn, row, origin.put_back(piece.stage, level, piece.noise, latent))


def _states_of(piece: Piece, space: Workspace, branches: Branches) -> dict[str, Array]:
    """A picture's states: those that it had, or those that its stage begins with."""
    assert piece.latent is not None, "a picture that joins has entered its stage"
    fresh = space.states_from(piece.latent, branches)
    if piece.states is None:
        return fresh
    same = {port: value for port, value in piece.states.items() if value.shape == fresh[port].shape}
    return {**fresh, **same}  # a state with a branch axis begins anew where the branches change
