"""What a user may choose about calibration and quantisation, declared once."""

from dataclasses import dataclass
from pathlib import Path

from lssgen.calibration.prompts import SHIPPED
from lssgen.choices import choice, refuse_outside
from lssgen.errors import CalibrationError
from lssgen.manifest import NumberFormat

_RANGES, _QUANTISE, _GATE = "ranges and schedule", "quantise", "quantise: what it must pass"
_SCHEDULE = "schedule"

MOST_PROMPTS = 10_000
"""Prompts of a calibration; a few dozen are usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangesConfig:
    """What `ranges` is asked for.

    Attributes:
        prompts: File of prompts.
        limit: Number of its prompts to run, from the first; None: all.
        seed: Seed of the first prompt.

    Raises:
        CalibrationError: A number out of its range.
    """

    prompts: Path = choice(
        SHIPPED, help="prompts, one a line, or .jsonl as for lssgen run", metavar="FILE", group=_RANGES,
        unset="64 of ours, about everything",
    )  # fmt: skip
    limit: int | None = choice(
        None, help="run so many of the prompts", metavar="N", least=1, most=MOST_PROMPTS, group=_RANGES, unset="all"
    )
    seed: int = choice(0, help="prompt i is painted with seed + i", metavar="N", least=0, most=2**63, group=_RANGES)

    def __post_init__(self) -> None:
        refuse_outside(self, CalibrationError)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiseConfig:
    """What `quantise` is asked for.

    Attributes:
        format: Number format.
        statistics: File of `ranges`; None: beside the bundle.
        target: GPUs that the bundle is made for, with a TensorRT engine.
        smoothing: Strength of SmoothQuant, 0 to 1; None: that of the format.
        keep_blocks: Blocks at either end that stay as they are; None: as the family's record says.
        attention: Compute attentions in the format where it has them (fp8, nvfp4).
        text: Put the text encoders' weights into int8.
        share: Share of the activations that ranges hold, 0.9 to 1. Ranges of smoothed ones hold all: histograms are of
            what was there before.
        from_size: Pixels along the shorter side from which on stages are quantised; None: what the search finds.
        compare: Number of seeded runs that are compared; 0: none.
        psnr: Likeness of the latents to reach, in dB.
        cosine: Cosine of the latents to reach.
        force: Make it whether or not it is faster.

    Raises:
        CalibrationError: A number out of its range.
    """

    format: NumberFormat = choice("int8", help="number format", group=_QUANTISE)
    statistics: Path | None = choice(
        None, help="file of ranges", metavar="FILE", group=_QUANTISE, unset="<bundle>.ranges.safetensors beside it"
    )
    target: tuple[str, ...] = choice(
        (), help="GPUs that it is made for, with a TensorRT engine", metavar="SM", group=_QUANTISE, unset="all"
    )
    smoothing: float | None = choice(
        None, help="strength of SmoothQuant, 0 to 1", metavar="A", least=0, most=1, group=_QUANTISE,
        unset="0.8 for int8, else 0",
    )  # fmt: skip
    keep_blocks: int | None = choice(
        None, help="blocks at either end that stay as they are", metavar="N", least=0, most=1000, group=_QUANTISE,
        unset="2, but an eighth of the blocks at most",
    )  # fmt: skip
    attention: bool = choice(True, help="attentions too, with fp8 and nvfp4", group=_QUANTISE)
    text: bool = choice(True, help="text encoders' weights in int8", group=_QUANTISE)
    share: float = choice(
        1.0,
        help="share of the activations that ranges hold; of smoothed ones, all",
        metavar="SHARE",
        least=0.9,
        most=1,
        group=_QUANTISE,
    )
    from_size: int | None = choice(
        None, help="quantise stages from so many pixels on; smaller ones stay as they are", metavar="PX", least=0,
        most=65536, group=_QUANTISE, unset="all, or as many as the bound allows",
    )  # fmt: skip
    compare: int = choice(
        4, help="seeded runs that are compared; 0: none", metavar="N", least=0, most=1000, group=_GATE
    )
    psnr: float = choice(
        25.0, help="likeness of latents in dB, after every stage", metavar="DB", least=0, most=200, group=_GATE
    )
    cosine: float = choice(0.97, help="and their cosine", metavar="COS", least=-1, most=1, group=_GATE)
    force: bool = choice(False, help="make it whether or not it is faster", group=_GATE)

    def __post_init__(self) -> None:
        refuse_outside(self, CalibrationError)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptConfig:
    """What `adopt` is asked for.

    Attributes:
        graph: ONNX file of the step, with quantising nodes of another tool.
        by: Name of that tool; None: what the file says.
    """

    graph: Path | None = choice(
        None, help="ONNX file of the step, quantised by another tool", metavar="FILE", group="adopt",
        unset="none; required to adopt",
    )  # fmt: skip
    by: str | None = choice(None, help="tool that made it", metavar="NAME", group="adopt", unset="what the file says")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """What `schedule` is asked for, besides the prompts and the seed of `RangesConfig`.

    Attributes:
        tries: Number of schedules to try.
        judge: Name of a judge, see `lssgen.calibration.judges`, or "module:function".
        install: True where what was found is written into the bundle.

    Raises:
        CalibrationError: A number out of its range.
    """

    tries: int = choice(
        60, help="schedules to try, each on every prompt", metavar="N", least=2, most=100_000, group=_SCHEDULE
    )
    judge: str = choice(
        "psnr",
        help="what says how good pictures are: psnr, against one stage with all steps from the same noise; or a "
        "function of a prompt and a picture",
        metavar="psnr|MODULE:FUNCTION",
        group=_SCHEDULE,
    )
    install: bool = choice(True, help="write what was found into the bundle, for --budget-ms", group=_SCHEDULE)

    def __post_init__(self) -> None:
        refuse_outside(self, CalibrationError)


SCHEDULE_PROMPTS = 8
"""Prompts that a search paints by every schedule where nobody says how many."""
