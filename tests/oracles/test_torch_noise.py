import pytest

from lssgen.runtime.noise import NoiseStream

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("seed", [0, 3, 2**32 - 1, 2**63 + 11])
def test_every_draw_of_a_stream_equals_torch(seed: int) -> None:
    """1e-6: torch's vectorised logarithm and cosine differ from NumPy's in the last bit or two of numbers up to 6."""
    generator, stream = torch.Generator("cpu").manual_seed(seed), NoiseStream(seed)
    for shape in ((16,), (17,), (4, 5, 7), (31,), (16, 64, 64)):
        expected = torch.randn(shape, generator=generator).numpy()
        assert stream.draw(shape) == pytest.approx(expected, abs=1e-6)
