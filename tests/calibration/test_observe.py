"""Observers: what is remembered of many calls is what would be found in all of them at once."""

import numpy as np
import pytest

from lssgen.calibration.observe import BINS, Seen, histogram


def numbers_of(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """What a tap says of a call."""
    return values.min(0), values.max(0), np.square(values).mean(0), values, np.array([2.0], np.float32)


def seen_of(calls: list[np.ndarray]) -> Seen:
    seen = Seen.nothing(calls[0].shape[1], 1)
    for values in calls:
        seen.add(*numbers_of(values))
    return seen


@pytest.fixture
def calls() -> list[np.ndarray]:
    """Calls with unlike numbers of tokens, as stages have them."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((rows, 3)).astype(np.float32) * scale for rows, scale in ((8, 1), (64, 5), (300, 0.1))]


def test_ranges_and_counts_are_those_of_all_calls_together(calls: list[np.ndarray]) -> None:
    seen, whole = seen_of(calls), np.concatenate(calls)
    assert (seen.low == whole.min(0)).all()
    assert (seen.high == whole.max(0)).all()
    assert seen.peak == np.abs(whole).max()
    assert seen.counts.sum() == whole.size
    assert seen.calls == 3


def test_parts_put_together_are_the_whole(calls: list[np.ndarray]) -> None:
    one, other = seen_of(calls[:1]), seen_of(calls[1:])
    for merged in (one.merged(other), other.merged(one), seen_of(calls).merged(Seen.nothing(3, 1))):
        whole = seen_of(calls)
        for name in ("low", "high", "counts", "calls", "bad"):
            assert np.array_equal(getattr(merged, name), getattr(whole, name))
        assert merged.squares == pytest.approx(whole.squares)


def test_memory_does_not_grow_with_the_calls(calls: list[np.ndarray]) -> None:
    few, many = seen_of(calls), seen_of(calls * 20)
    assert few.counts.nbytes == many.counts.nbytes == 2 * BINS * 8
    assert few.low.nbytes == many.low.nbytes


def test_a_share_of_the_values_lies_within_what_is_said() -> None:
    values = np.random.default_rng(0).standard_normal((4000, 4)).astype(np.float32)
    seen = seen_of([values])
    for share in (0.9, 0.99, 0.999):
        low, high = seen.within(share)
        inside = ((values >= low) & (values <= high)).mean()
        assert share <= inside <= share + 0.02  # bins are an eighth of an octave wide
    assert seen.within(1) == (values.min(), values.max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_remembered_and_spoils_nothing(calls: list[np.ndarray], bad: float) -> None:
    seen = seen_of(calls)
    values = calls[0].copy()
    values[0, 0] = bad
    low = seen.low.copy()
    seen.add(*numbers_of(values))
    assert seen.bad
    assert (seen.low == low).all()


def test_a_nan_that_an_engines_minimum_passes_over_is_remembered(calls: list[np.ndarray]) -> None:
    """Kernels may prefer a number to NaN where they compare; a mean does not."""
    low, high, square, rows, power = numbers_of(calls[0])
    square[1] = np.nan
    seen = seen_of(calls)
    seen.add(low, high, square, rows, power)
    assert seen.bad


def test_histograms_hold_signs_apart_and_the_very_small_and_large() -> None:
    counts = histogram(np.array([-1.0, 1.0, 2.0, 1e-30, 1e30, 0.0]))
    assert counts.sum(axis=1).tolist() == [1, 4]
    assert counts[1, 0] == counts[1, -1] == 1
