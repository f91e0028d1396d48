"""How good pictures are, in a number: a table of judges, and whatever function a user names."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lssgen.errors import CalibrationError

MOST_DB = 100.0
"""Peak signal to noise of pictures that are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Says how good a picture is; more is better.

    Attributes:
        name: Name, and unit of its numbers.
        judge: Function of the prompt, the picture, and the picture that one stage with all steps paints from the same
            noise.
        compares: True where it looks at that other picture. The noise of all stages is then one field, that of the one
            stage (`noise_field`): other noise would be another picture, however good the schedule.
    """

    name: str
    judge: Callable[[str, Image.Image, Image.Image], float]
    compares: bool = False


def _psnr(_: str, picture: Image.Image, wanted: Image.Image) -> float:
    one, other = (np.asarray(image, np.float64) for image in (picture, wanted))
    error = float(np.mean(np.square(one - other)))
    return MOST_DB if error == 0 else min(MOST_DB, 10 * float(np.log10(255.0**2 / error)))


JUDGES: Mapping[str, Judge] = {
    "psnr": Judge(name="psnr, dB", judge=_psnr, compares=True),
}
"""Judges by the names that users give."""


def judge_of(name: str) -> Judge:
    """A judge by its name, or from "module:function", a function of a prompt and a PIL picture.

    Raises:
        CalibrationError: There is none.
    """
    if name in JUDGES:
        return JUDGES[name]
    module, colon, function = name.partition(":")
    advice = f"give {' or '.join(JUDGES)}, or MODULE:FUNCTION, a function of a prompt and a picture"
    if not (module and colon and function):
        raise CalibrationError(f"judge {name[:60]!r} is not known; {advice}")
    try:
        found: Callable[[str, Image.Image], Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise CalibrationError(f"judge {name[:60]!r} cannot be loaded ({error}); {advice}") from error
    return Judge(name=name, judge=lambda prompt, picture, _: float(found(prompt, picture)))
