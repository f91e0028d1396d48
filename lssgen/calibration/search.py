"""The search: how few products must go back to high precision until latents reach a bound."""

from collections.abc import Callable, Mapping, Sequence

from lssgen.calibration.quality import Bound, Quality
from lssgen.errors import CalibrationError

Try = Callable[[frozenset[str]], Quality]
"""Quantises all products but some, by name, and says how alike latents are."""

MOST_KEPT = 0.5
"""Share of the products that may go back; with more, the format is of no use for this model."""


def worst_first(snr_db: Mapping[str, float]) -> list[str]:
    """Names of products by their signal to noise, the noisiest first."""
    return sorted(snr_db, key=lambda name: (snr_db[name], name))


def search(order: Sequence[str], attempt: Try, bound: Bound, first: Quality) -> tuple[frozenset[str], Quality]:
    """Return the noisiest products until the bound is reached.

    The number of them is doubled until it is, then halved back to the smallest that is known to do.

    Args:
        order: Names of the quantised products, the noisiest first.
        attempt: Makes a graph and compares it.
        bound: What is to be reached.
        first: What was reached with all of them quantised.

    Returns:
        Names of the products that went back, and what is reached with that.

    Raises:
        CalibrationError: Not with half of them either.
    """
    if first.reaches(bound):
        return frozenset(), first
    most = int(len(order) * MOST_KEPT)
    low, high, reached = 0, max(1, len(order) // 16), first
    while not (reached := attempt(frozenset(order[:high]))).reaches(bound):
        if high >= most:
            raise CalibrationError(
                f"latents reach {reached} with {high} of {len(order)} products in high precision, and the bound is "
                f"{bound.psnr_db:g} dB and cosine {bound.cosine:g}; choose a wider format, smoothing, or lower bounds "
                "(--psnr, --cosine)"
            )
        low, high = high, min(2 * high, most)
    while high - low > max(1, len(order) // 32):
        middle = (low + high) // 2
        tried = attempt(frozenset(order[:middle]))
        low, high, reached = (low, middle, tried) if tried.reaches(bound) else (middle, high, reached)
    return frozenset(order[:high]), reached
