"""What is measured against each other: the same step, and the same run, by torch and by lssgen's engines."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.engines.demand import Demand
from lssgen.engines.registry import open_backend
from lssgen.parity.samples import sample_inputs, shape_of
from lssgen.runtime import Pipeline

Work = Callable[[], Any]

TORCH = ("torch fp32", "torch bf16", "torch bf16 compiled")
LSSGEN: Mapping[str, tuple[str, dict[str, Any]]] = {
    "onnxruntime": ("onnxruntime", {}),
    "openvino fp32": ("openvino", {"inference_precision": "fp32"}),
    "openvino": ("openvino", {}),
    "auto": ("auto", {}),
}
"""Engine and its options, by the name in tables."""

NEGATIVE, GUIDANCE = "", 4.0

ABSENT: Mapping[str, None] = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))
"""Parts that the models do without; diffusers wants to be told."""


def engine_of(name: str, threads: int) -> Backend:
    engine, words = LSSGEN[name]
    return open_backend(engine, threads=threads, **words)


def lssgen_step(name: str, bundle: Bundle, size: int, tokens: int, threads: int) -> Work:
    """One step of two branches on one of lssgen's engines, everything between two latents included."""
    backend, entry, cells = engine_of(name, threads), bundle.manifest.graphs["step"], _cells(bundle, size)
    sizes = {"batch": 1, "branches": 2, "height": cells, "width": cells}
    axes = {axis: sizes.get(what, tokens) for axis, what in entry.axes.items()}
    inputs = sample_inputs(entry.inputs, axes)
    engines = backend.open(bundle, Demand(graphs=("step",)))
    engine = engines["step"]
    buffers = {port: backend.empty(value.shape, value.dtype) for port, value in inputs.items()}
    buffers |= {port.name: backend.empty(shape_of(port, axes), port.dtype) for port in engine.outputs}
    for port, value in inputs.items():
        buffers[port].write(value)
    return engine.bind(buffers)


def torch_step(name: str, checkpoint: Path, bundle: Bundle, size: int, tokens: int) -> Work:
    """The transformer's forward pass of two branches in torch; guidance and the solver, which are small, left out."""
    import torch
    from diffusers import SD3Transformer2DModel

    dtype = torch.float32 if "fp32" in name else torch.bfloat16
    network: Any = SD3Transformer2DModel.from_pretrained(checkpoint / "transformer", torch_dtype=dtype).eval()
    config, cells = network.config, _cells(bundle, size)
    given = {
        "hidden_states": torch.randn(2, config.in_channels, cells, cells, dtype=dtype),
        "timestep": torch.full((2,), 600.0),
        "encoder_hidden_states": torch.randn(2, tokens, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim, dtype=dtype),
    }
    form = torch.compile(network) if "compiled" in name else network

    def step() -> None:
        with torch.inference_mode():
            form(**given, return_dict=False)

    return step


def torch_run(name: str, checkpoint: Path, size: int, steps: int, zeros: int) -> Callable[[str, int], Any]:
    """A whole run of diffusers in one stage: prompt and seed to a picture. Of text, it has `zeros` rows of T5's."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    dtype = torch.float32 if "fp32" in name else torch.bfloat16
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(checkpoint, torch_dtype=dtype, **ABSENT)
    pipe.set_progress_bar_config(disable=True)
    if "compiled" in name:
        pipe.transformer = torch.compile(pipe.transformer)
        pipe.vae.decode = torch.compile(pipe.vae.decode)

    def run(prompt: str, seed: int) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.inference_mode():
            return pipe(
                prompt, negative_prompt=NEGATIVE, height=size, width=size, num_inference_steps=steps,
                guidance_scale=GUIDANCE, generator=generator, max_sequence_length=zeros,
            ).images[0]  # fmt: skip

    return run


def lssgen_run(name: str, bundle: Bundle, threads: int, **options: Any) -> Callable[[str, int], Any]:
    """A whole run of lssgen."""
    pipeline = Pipeline(bundle, engine_of(name, threads))

    def run(prompt: str, seed: int) -> Any:
        return pipeline(prompt, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, seed=seed, **options)

    return run


def psnr(got: np.ndarray, wanted: np.ndarray) -> float:
    """Decibels, with the spread of what was wanted as the peak."""
    peak = float(wanted.max() - wanted.min())
    error = float(np.mean((got.astype(np.float64) - wanted) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(peak * peak / error))


def _cells(bundle: Bundle, size: int) -> int:
    return size // bundle.manifest.facts.cell_px
