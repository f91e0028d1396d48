"""What a user may choose about measuring noise levels, declared once."""

from dataclasses import dataclass
from pathlib import Path

from lssgen.choices import choice, refuse_outside
from lssgen.errors import CalibrationError
from lssgen.plan.options import MOST_SIDE_PX

_SIGMA = "sigma"

QUALITY = 0.05
"""Share of a band's power that may be wrong where a stage starts; docs/noise_levels.md says what fixes it."""

MOST_PICTURES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmaConfig:
    """What `sigma` is asked for.

    Attributes:
        vae: A VAE of diffusers, where no bundle is measured: folder, or hub id.
        images: Folder of photographs.
        upsampler: Folder of a latent upsampler for that VAE; None: the transition "resnet" is not measured.
        crop: Side of the squares cut from the photographs, in pixels; None: the bundle's largest size, or 1024.
        pictures: Largest number of photographs.
        quality: Share of a band's power that may be wrong where a stage starts.
        levels: File that an earlier `sigma` wrote, to be put into the bundle without measuring.

    Raises:
        CalibrationError: A number out of its range.
    """

    vae: str | None = choice(
        None, help="measure a VAE without a bundle: its folder, a pipeline's, or a hub id", metavar="VAE",
        group=_SIGMA, unset="the bundle's own graphs",
    )  # fmt: skip
    images: Path | None = choice(
        None, help="folder of photographs, searched with subfolders", metavar="DIR", group=_SIGMA,
        unset="required to measure",
    )  # fmt: skip
    upsampler: Path | None = choice(
        None, help="latent upsampler for that VAE", metavar="DIR", group=_SIGMA, unset="resnet is not measured"
    )
    crop: int | None = choice(
        None, help="side of the squares cut from the photographs", metavar="PX", least=1, most=MOST_SIDE_PX,
        group=_SIGMA, unset="the bundle's largest size, or 1024",
    )  # fmt: skip
    pictures: int = choice(64, help="photographs at most", metavar="N", least=1, most=MOST_PICTURES, group=_SIGMA)
    quality: float = choice(
        QUALITY, help="share of a band's power that may be wrong where a stage starts; less starts noisier",
        metavar="D", least=1e-4, most=1, group=_SIGMA,
    )  # fmt: skip
    levels: Path | None = choice(
        None, help="put what an earlier sigma wrote into the bundle, without measuring", metavar="FILE", group=_SIGMA,
        unset="measure",
    )  # fmt: skip

    def __post_init__(self) -> None:
        refuse_outside(self, CalibrationError)
        if self.levels is None and self.images is None:
            raise CalibrationError("to measure noise levels, give a folder of photographs with --images")
