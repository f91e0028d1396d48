"""Which networks stay on the device in low-memory mode, and how much memory that is: pure functions."""

from collections.abc import Sequence

_SMALL_PART = 16
"""A network of at most this part of the largest one is small: transitions, and a VAE beside a large step network."""


def stays(size: int, largest: int) -> bool:
    """Whether a network stays on the device in low-memory mode: a small one is not worth the largest one's way back."""
    return size * _SMALL_PART <= largest


def in_turn_bytes(weights: Sequence[int]) -> int:
    """Device memory of weights in low-memory mode: those of the largest network, and of all that stay."""
    largest = max(weights, default=0)
    return largest + sum(size for size in weights if stays(size, largest))


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
