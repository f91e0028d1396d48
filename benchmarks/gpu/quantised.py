"""Few bits against half precision on a GPU: how much faster each format's step is, and how far its latents are off.

TensorRT computes products of codes. ONNX Runtime has none on a GPU: there a graph made for TensorRT is computed with
the same rounding, codes decoded before each product, which proves quality on the GPU and says nothing about speed. Of
NVFP4 it has not even the operators, so its rounding is rehearsed by ordinary arithmetic, and is not timed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lssgen.bundle import Bundle
from lssgen.calibration.formats import FORMATS, TRT_ENGINES
from lssgen.calibration.gates import Gate
from lssgen.calibration.quality import Bound, Runs
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.calibration.ranges import RangesJob, measure_ranges
from lssgen.engines.base import Backend
from lssgen.errors import LssgenError
from lssgen.manifest import NumberFormat
from lssgen.runtime.options import Options

PROMPTS = ("a red star above a blue circle on a white background", "a small green triangle on a black background")
"""Of objects that the demo model knows, and short enough for its text encoder."""
STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One format on one engine.

    Attributes:
        what: Name of the model and format.
        engine: Name of the engine.
        speedup: Time of a step in half precision, divided by that in the format, by resolution.
        psnr_db, cosine: Likeness of the latents after every stage.
        products: Number of products in the format.
        kept: Number of products that went back to half precision, or are at the ends.
        attention: Number of attentions in the format.
        megabytes: Size of the step on disk.
        computed: How the engine computes them: "products of codes", "codes decoded, then multiplied", "rehearsed".
        note: Reason why there is nothing; empty where there is something.
    """

    what: str
    engine: str
    speedup: dict[str, float]
    psnr_db: tuple[float, ...] = ()
    cosine: tuple[float, ...] = ()
    products: int = 0
    kept: int = 0
    attention: int = 0
    megabytes: float = 0.0
    computed: str = ""
    note: str = ""


def contests(bundle: Bundle, backend: Backend, work: Path) -> Iterator[Contest]:
    """Every format that an engine has, from one calibration on that engine's machine.

    Args:
        bundle: A bundle in half precision.
        backend: The engine; it runs the calibration, the comparison and the clock.
        work: Folder for ranges and bundles.
    """
    name = bundle.manifest.facts.name
    options = cast(Options, run_options(bundle))
    job = RangesJob(
        bundle=bundle, backend=backend, prompts=PROMPTS, output=work / f"{name}.ranges.safetensors", options=options
    )
    try:
        statistics = measure_ranges(job)
    except LssgenError as error:
        yield Contest(what=f"{name} ranges", engine=backend.name, speedup={}, note=str(error))
        return
    for form in FORMATS:
        computed = _computed(form, backend)
        gate = Gate(
            runs=Runs(prompts=PROMPTS, options=options),
            backend=backend,
            bound=Bound(0.0, -1.0),
            timed=None if computed == REHEARSED else backend,
            force=True,
        )
        order = QuantiseJob(
            bundle=bundle,
            output=work / f"{name}-{form}-{backend.name}",
            format=form,
            engine=backend.name if backend.name in TRT_ENGINES else TRT_ENGINES[0],
            statistics=statistics,
            gate=gate,
        )
        yield _contest(f"{name} {form}", order, computed, backend)


CODES, DECODED, REHEARSED = "products of codes", "codes decoded, then multiplied", "rehearsed"


def _computed(form: NumberFormat, backend: Backend) -> str:
    if backend.name in TRT_ENGINES and FORMATS[form].activations:
        return CODES
    return REHEARSED if form == "nvfp4" else DECODED


def _contest(what: str, order: QuantiseJob, computed: str, backend: Backend) -> Contest:
    try:
        made = quantise(order)
    except LssgenError as error:
        return Contest(what=what, engine=backend.name, speedup={}, computed=computed, note=str(error))
    about = made.manifest.graphs["step"].quantisation
    assert about is not None
    assert about.measured is not None
    return Contest(
        what=what,
        engine=backend.name,
        speedup=dict(about.measured.speedup),
        psnr_db=about.measured.psnr_db,
        cosine=about.measured.cosine,
        products=about.products,
        kept=len(about.kept),
        attention=about.attention,
        megabytes=made.stored_bytes("step") / 1e6,
        computed=computed,
    )


def run_options(bundle: Bundle) -> dict[str, Any]:
    """Runs through every stage that the bundle is made for."""
    small, large = bundle.manifest.resolutions[0], bundle.manifest.resolutions[-1]
    spaces = [name.removeprefix("transition_") for name in bundle.manifest.graphs if name.startswith("transition_")]
    return {
        "height": large[0], "width": large[1], "min_resolution": min(small), "base_height": small[0],
        "base_width": small[1], "num_inference_steps": STEPS, "scaling_space": spaces[0],
    }  # fmt: skip
