import numpy as np
import pytest

from lssgen.errors import PlanError
from lssgen.runtime.noise import NoiseStream, draw_each


def test_noise_is_that_of_a_torch_generator() -> None:
    """The first numbers of torch.randn(16, generator=torch.Generator("cpu").manual_seed(3)), torch 2.13."""
    torch = (-0.0766443, 0.3598815, -0.7820168, 0.0715277, 0.6648394, -0.2867803, 1.6205508, -1.5967081)
    assert NoiseStream(3).draw((16,))[:8] == pytest.approx(torch, abs=5e-7)


def test_a_stream_goes_on_where_the_last_draw_ended() -> None:
    once = NoiseStream(5).draw((3, 32))
    stream = NoiseStream(5)
    assert np.array_equal(np.stack([stream.draw((32,)) for _ in range(3)]), once)


def test_a_picture_draws_the_same_in_any_company() -> None:
    alone = draw_each([NoiseStream(8)], (4, 4, 4))[0]
    together = draw_each([NoiseStream(7), NoiseStream(8), NoiseStream(9)], (4, 4, 4))
    assert np.array_equal(together[1], alone)


def test_only_the_low_half_of_a_seed_matters_as_in_torch() -> None:
    assert np.array_equal(NoiseStream(2**32 + 5).draw((16,)), NoiseStream(5).draw((16,)))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_an_impossible_seed_is_refused(seed: int) -> None:
    with pytest.raises(PlanError, match="whole number from 0 to 2"):
        NoiseStream(seed)


def test_fewer_numbers_than_torch_draws_in_a_block_are_refused() -> None:
    with pytest.raises(PlanError, match="at least 16"):
        NoiseStream(0).draw((3, 5))


def test_noise_is_standard_normal() -> None:
    noise = NoiseStream(1).draw((1 << 18,))
    assert (noise.mean(), noise.std(), (noise**4).mean()) == pytest.approx((0, 1, 3), abs=0.03)


def test_noise_that_is_drawn_in_squares_is_that_of_a_packed_latent() -> None:
    """As FLUX.2's pipeline draws it: channels of 2 x 2 cells, which become cells of a latent."""
    packed = NoiseStream(3).draw((8, 3, 5))
    latent = NoiseStream(3, patch=2).draw((2, 6, 10))
    for channel, down, across in np.ndindex(2, 2, 2):
        assert np.array_equal(latent[channel, down::2, across::2], packed[4 * channel + 2 * down + across])
