"""How far a quantised bundle's latents are from those of the bundle that it was made from, after every stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lssgen.bundle import Bundle
from lssgen.calibration.numbers import Floats
from lssgen.engines.base import Backend
from lssgen.ports import Array
from lssgen.runtime.options import Options
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.recorder import RecordingBackend

SEEDS = 1000
"""First seed of the runs that are compared; those of a calibration count from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Seeded runs that bundles are compared by.

    Attributes:
        prompts: Prompts, each painted once with a seed of its own.
        options: Options of the runs.
    """

    prompts: tuple[str, ...]
    options: Options = field(default_factory=Options)

    def latents(self, bundle: Bundle, backend: Backend) -> list[list[Floats]]:
        """(C, h, w) latents after every stage, of every prompt."""
        found: list[list[Floats]] = []
        entered: list[Floats] = []

        def hear(graph: str, inputs: Mapping[str, Array]) -> None:
            if graph.startswith("transition"):
                entered.append(np.asarray(inputs["latent"][0], np.float32))

        with Pipeline(bundle, RecordingBackend(backend, hear)) as pipeline:
            for number, prompt in enumerate(self.prompts):
                entered.clear()
                options: Options = {**self.options, "seed": SEEDS + number, "num_images": 1, "batch": 1}
                result = pipeline(prompt, **options)
                found.append([*entered, result.pictures[0].latent])
        return found


@dataclass(frozen=True, slots=True)
class Quality:
    """How alike latents are, after every stage; of several runs, the worst.

    Attributes:
        psnr_db: Peak signal to noise in dB; the peak is the range of the latent that is compared with.
        cosine: Cosine of the angle between the two.
    """

    psnr_db: tuple[float, ...]
    cosine: tuple[float, ...]

    def reaches(self, bound: "Bound") -> bool:
        """Whether every stage keeps a bound."""
        return min(self.psnr_db) >= bound.psnr_db and min(self.cosine) >= bound.cosine

    def __str__(self) -> str:
        each = [f"{psnr:.1f} dB, cosine {cosine:.4f}" for psnr, cosine in zip(self.psnr_db, self.cosine, strict=True)]
        return "; ".join(f"stage {index}: {said}" for index, said in enumerate(each, 1))


@dataclass(frozen=True, slots=True)
class Bound:
    """What latents must reach after every stage."""

    psnr_db: float
    cosine: float

    @property
    def halved(self) -> "Bound":
        """The bound of half as much error, in mean squares."""
        return Bound(self.psnr_db + 10 * float(np.log10(2)), (1 + self.cosine) / 2)


MOST_DB = 200.0
"""Peak signal to noise of latents that are equal."""


def compared(wanted: Sequence[Sequence[Floats]], got: Sequence[Sequence[Floats]]) -> Quality:
    """How alike the latents of two bundles are; the first's are the measure."""
    psnr = [[_psnr(*pair) for pair in zip(*run, strict=True)] for run in zip(wanted, got, strict=True)]
    cosine = [[_cosine(*pair) for pair in zip(*run, strict=True)] for run in zip(wanted, got, strict=True)]
    return Quality(*(tuple(map(float, np.min(numbers, axis=0))) for numbers in (psnr, cosine)))


def _psnr(wanted: Floats, got: Floats) -> float:
    error = float(np.mean(np.square(got - wanted, dtype=np.float64)))
    if not np.isfinite(error):
        return -MOST_DB
    span = float(wanted.max() - wanted.min())
    return min(MOST_DB, 10 * float(np.log10(max(span, 1e-12) ** 2 / max(error, 1e-30))))


def _cosine(wanted: Floats, got: Floats) -> float:
    one, other = wanted.ravel().astype(np.float64), got.ravel().astype(np.float64)
    found = float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-30))
    return found if np.isfinite(found) else -1.0
