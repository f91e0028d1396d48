"""The server on TensorRT, on doubles that run work late and enforce the rules of CUDA and TensorRT."""

from typing import Any

import pytest
from machine import Make

from lssgen.engines.onnxruntime import OrtBackend, OrtOptions
from lssgen.engines.trt.library import Flavour
from lssgen.runtime import Options, Pipeline
from lssgen.serving import ImageRequest, Server, ServerOptions

WORDS = Options(min_resolution=32, scaling_space="latent")


def asked(seed: int) -> tuple[Options, int]:
    """Words and number of pictures of a request: unlike steps, sizes and guidance."""
    return Options(
        **WORDS,
        seed=seed,
        num_inference_steps=3 + seed % 4,
        height=(64, 32)[seed % 2],
        width=64,
        guidance_scale=(3.0, 1.0, 5.0)[seed % 3],
    ), 1 + seed % 2


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_pictures_in_company_are_those_of_onnx_runtime_alone(
    make: Make, flavour: Flavour, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double computes with the same ONNX Runtime, so nothing but the way of the tensors can differ."""
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    machine = make(flavour)
    options = ServerOptions(batches=(1, 2, 4), sizes=((32, 32),))
    with Server(machine.bundle.folder, engine=machine.backend(), options=options) as server:
        assert server.wait_ready(60), server.phase
        tickets = [
            server.submit(ImageRequest(prompt="a star", options=words, n=n, previews=seed == 0))
            for seed in range(6)
            for words, n in [asked(seed)]
        ]
        answers = [ticket.result(60) for ticket in tickets]
        stats = server.stats()
    assert stats.steps > stats.calls
    with Pipeline(machine.bundle, OrtBackend(OrtOptions(threads=1))) as pipeline:
        for seed, answer in enumerate(answers):
            words, n = asked(seed)
            expected = pipeline("a star", num_images=n, **words)
            for came, wanted in zip(answer.pictures, expected.pictures, strict=True):
                assert came.latent.tobytes() == wanted.latent.tobytes()
                assert came.image.tobytes() == wanted.image.tobytes()
