"""A quantised bundle keeps its slots for LoRAs, in float beside its products in few bits."""

from pathlib import Path

import numpy as np
import pytest
from slotting import factors_of, lora_for, relative

from lssgen.bundle import Bundle
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.demo import CHECKPOINT
from lssgen.engines.registry import open_backend
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.ports import Array
from lssgen.runtime import Options, Pipeline

pytestmark = pytest.mark.slow  # an export of the demo model

WORDS = Options(num_inference_steps=3, height=128, width=128, min_resolution=128, seed=3)


def latents(bundle: Bundle, *loras: str) -> Array:
    with Pipeline(bundle, open_backend("onnxruntime", threads=1)) as pipeline:
        return pipeline("a red star", **{**WORDS, "loras": loras}).latents


def test_a_lora_does_the_same_to_a_quantised_bundle(tmp_path: Path) -> None:
    bundle = export(
        ExportConfig(
            model=str(CHECKPOINT),
            output=tmp_path / "plain",
            resolutions=((128, 128),),
            transitions=("latent",),
            lora_slots=1,
            lora_rank=4,
            probe="none",
            threads=1,
        )
    )
    file = lora_for(factors_of(bundle).layers, tmp_path / "style.safetensors", 4)
    made = quantise(
        QuantiseJob(bundle=bundle, output=tmp_path / "int8", format="int8-weights", engine="onnxruntime", text=False)
    )
    about = made.manifest.graphs["step"].quantisation
    assert about is not None
    assert about.products == 57, "those of the demo model without slots"
    assert factors_of(made) == factors_of(bundle)
    plain, coded = latents(bundle), latents(made)
    rounding = relative(coded, plain)
    assert relative(latents(made, f"{file}:0.3"), latents(bundle, f"{file}:0.3")) < 3 * rounding + 1e-6
    assert relative(latents(made, f"{file}:0.3"), coded) > 3 * rounding, "the LoRA matters more than the rounding"
    np.testing.assert_array_equal(latents(made), coded)
