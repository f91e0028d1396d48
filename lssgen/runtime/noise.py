"""Gaussian noise that does not depend on the device: the numbers of torch.Generator("cpu"), without torch.

One stream makes one picture. Everything random in the picture comes from its stream, in a fixed order: the noise of
each stage, smallest first; after it the posterior noise of a transition through pixels; then one draw a step, where
the solver draws. So a picture depends on its seed alone, not on the batch it was painted in.

By that order, which is the published one, a seed means another noise with every number of stages. A field of the
picture's, drawn once at its full size, means the same one: smaller stages begin with its lowest frequencies.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import PlanError
from lssgen.plan.cosines import lowering

Field = Literal["stage", "picture"]
"""Noise that stages begin with: each with its own, or all with parts of one field of the picture's."""

_BLOCK = 16
"""torch fills a tensor by Box-Muller in blocks of 16: eight radii, then eight angles."""


class NoiseStream:
    """Standard normal numbers as `torch.randn(..., generator=torch.Generator("cpu").manual_seed(seed))` draws them.

    Equal to 5e-7; the rest is rounding inside the logarithm and the cosine.

    Args:
        seed: In [0, 2^64). Like torch's generator, only its low 32 bits make a difference.
        patch: Cells along one side whose numbers are drawn together, see `ModelFacts.noise_patch`.

    Raises:
        PlanError: The seed lies outside.

    Source: Mersenne Twister with init_genrand seeding, 24-bit uniforms and the blocked Box-Muller transform, as in
        torch's CPU kernel for `normal_`.
    """

    def __init__(self, seed: int, patch: int = 1) -> None:
        check_seed(seed)
        self._patch = patch
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def draw(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """The next numbers of the stream, as one array.

        Args:
            shape: (C, h, w) of a latent, whose sides the patch divides; with a patch of 1 any.

        Raises:
            PlanError: Fewer than 16 numbers, for which torch has another algorithm; no latent is that small.
        """
        size = prod(shape)
        if size < _BLOCK:
            raise PlanError(f"noise of shape {tuple(shape)} has {size} numbers, but the stream draws at least {_BLOCK}")
        out = np.empty(size, np.float32)
        uniform = self._uniform(size)  # torch draws all of them first, whole block or not
        whole = size - size % _BLOCK
        out[:whole] = _box_muller(uniform[:whole])
        if whole < size:  # torch overwrites the last 16 with a fresh block
            out[-_BLOCK:] = _box_muller(self._uniform(_BLOCK))
        return out.reshape(shape) if self._patch == 1 else _unpacked(out, shape, self._patch)

    def _uniform(self, size: int) -> NDArray[np.float32]:
        # Over the whole range of uint32 NumPy rejects nothing and buffers nothing: these are the generator's own words.
        words = self._twister.randint(0, 1 << 32, size, np.uint32)
        # torch keeps the low 24 bits, as many as a float32 holds.
        words &= np.uint32(0xFFFFFF)
        return words.astype(np.float32) * np.float32(2**-24)


def check_seed(seed: int) -> None:
    """Raise PlanError unless the seed is in [0, 2^64)."""
    if not 0 <= seed < 1 << 64:
        raise PlanError(f"seed {seed} cannot be used; choose a whole number from 0 to 2^64 - 1")


def _unpacked(numbers: NDArray[np.float32], shape: Sequence[int], patch: int) -> NDArray[np.float32]:
    """Numbers that were drawn as (C * patch * patch, h / patch, w / patch), as a latent of (C, h, w)."""
    channels, height, width = shape
    packed = numbers.reshape(channels, patch, patch, height // patch, width // patch)
    return packed.transpose(0, 3, 1, 4, 2).reshape(shape)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """(16 n,) uniform numbers in [0, 1) -> (16 n,) normal ones."""
    halves = uniform.reshape(-1, 2, _BLOCK // 2)
    # 1 - u lies in (0, 1], where u itself may be 0, whose logarithm is infinite. All in float32, as torch computes it.
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - halves[:, 0]))
    angle = np.float32(2 * np.pi) * halves[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)


class StageNoise:
    """The noise that the stages of one picture begin with.

    Args:
        stream: The picture's random numbers.
        field: Where it comes from.
        whole: (C, h, w) of the last stage.
    """

    def __init__(self, stream: NoiseStream, field: Field, whole: Sequence[int]) -> None:
        self._stream = stream
        self._one = field == "picture"
        self._whole = tuple(whole)
        self._field: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Memory of what it keeps."""
        return 0 if self._field is None else self._field.nbytes

    def draw(self, shape: Sequence[int], below: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """The noise of a stage; stages are asked for in their order.

        Args:
            shape: (C, h, w) of the stage.
            below: (h, w) of the stage before, where its noisy state is kept; else None.
        """
        if not self._one:
            return self._stream.draw(shape)
        if self._field is None:
            self._field = self._stream.draw(self._whole)
        noise = restricted(self._field, *shape[-2:])
        if below is None:
            return noise
        # The state has the field's noise in these frequencies already: twice the same would add up to too much.
        other = self._stream.draw((shape[0], *below)) - restricted(noise, *below)
        return noise + enlarged(other, *shape[-2:])


def restricted(field: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(..., H, W) noise -> (..., height, width) with its lowest frequencies, by the orthonormal cosine transform.

    White noise gives white noise of the same deviation, since the rows of the two matrices are orthonormal.
    """
    if field.shape[-2:] == (height, width):
        return field
    rows, columns = lowering(height, field.shape[-2]), lowering(width, field.shape[-1])
    return (rows @ field.astype(np.float64) @ columns.T).astype(np.float32)


def enlarged(noise: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(..., h, w) -> (..., height, width) whose lowest frequencies it has, and nothing beyond."""
    rows, columns = lowering(noise.shape[-2], height), lowering(noise.shape[-1], width)
    return (rows.T @ noise.astype(np.float64) @ columns).astype(np.float32)


def draw_each(streams: Sequence[NoiseStream], shape: Sequence[int]) -> NDArray[np.float32]:
    """The next numbers of every stream: (len(streams), *shape)."""
    return np.stack([stream.draw(shape) for stream in streams])
