"""Hooks that see every picture first (docs/checking.md): a classifier in ONNX, and a watermark with its detector.

CHECKER_MODEL=classifier.onnx PYTHONPATH=examples lssgen run "a red star" --checker checker:classifier
PYTHONPATH=examples lssgen serve --checker checker:classifier --watermark checker:watermark

The classifier takes pixels (pictures, 3, side, side), float32 in 0 to 1, and gives one score in 0 to 1 a picture. The
watermark is an example of the interface, and no protection: whoever saves a picture as JPEG has removed it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lssgen.ort import ort
from lssgen.runtime.checking import Verdict

REPLACE, REFUSE = 0.5, 0.9
"""Scores from which on a picture is replaced by a black one, and from which on the run ends."""

MARK = b"made by an AI"
"""What the watermark says."""


class Classifier:
    """A checker that asks a network.

    Args:
        model: ONNX file.
    """

    def __init__(self, model: Path) -> None:
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
        del prompts  # this one looks at pictures only
        side = int(self._input.shape[2])
        pixels = np.stack([np.asarray(picture.resize((side, side)), np.float32) / 255 for picture in pictures])
        (scores,) = self._session.run(None, {self._input.name: pixels.transpose(0, 3, 1, 2)})
        return [_verdict(float(score)) for score in np.asarray(scores).ravel()]


def _verdict(score: float) -> Verdict:
    action = "refuse" if score >= REFUSE else "replace" if score >= REPLACE else "keep"
    return Verdict(action=action, reason=f"score {score:.2f}")


def classifier() -> Classifier:
    """What `--checker checker:classifier` makes."""
    return Classifier(Path(os.environ["CHECKER_MODEL"]))


def watermark() -> "Mark":
    """What `--watermark checker:watermark` makes."""
    return Mark()


class Mark:
    """Writes a text into the lowest bits of the first pixels."""

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        return [self._marked(picture) for picture in pictures]

    def _marked(self, picture: Image.Image) -> Image.Image:
        bits = np.unpackbits(np.frombuffer(MARK, np.uint8))
        pixels = np.array(picture)
        flat = pixels.reshape(-1)
        flat[: bits.size] = flat[: bits.size] & 254 | bits
        return Image.fromarray(pixels)


class Detector:
    """A checker that refuses pictures which have the mark already: those that a run starts from, given back."""

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
        del prompts
        return [Verdict(action="refuse", reason="it is marked") if is_marked(one) else Verdict() for one in pictures]


def is_marked(picture: Image.Image) -> bool:
    """Whether a picture has the mark."""
    flat = np.asarray(picture.convert("RGB")).reshape(-1)[: 8 * len(MARK)] & 1
    return np.packbits(flat).tobytes() == MARK


def detector() -> Detector:
    """What `--checker checker:detector` makes."""
    return Detector()
