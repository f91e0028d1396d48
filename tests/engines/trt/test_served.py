"""The server on TensorRT, on doubles that run work late and enforce the rules of CUDA and TensorRT."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from machine import Machine, Make
from safetensors.numpy import save_file

from lssgen import paths
from lssgen.bundle import MANIFEST, Bundle, manifest_json, sha256_of
from lssgen.engines.onnxruntime import OrtBackend, OrtOptions
from lssgen.engines.trt.library import Flavour
from lssgen.engines.trt.options import BuildOptions
from lssgen.lora.asked import Lora
from lssgen.lora.styled import styled
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


def weighted(machine: Machine) -> Bundle:
    """The machine's bundle, its step with a matrix that lies in a data file, as an export leaves it."""
    folder, entry = machine.bundle.folder, machine.bundle.manifest.graphs["step"]
    model = onnx.load(folder / entry.file)
    tanh = next(node for node in model.graph.node if node.op_type == "Tanh")
    matrix = np.eye(4, dtype=np.float32)[..., None, None]
    model.graph.initializer.append(onnx.numpy_helper.from_array(matrix, "transformer.mix.weight"))
    mix = onnx.helper.make_node("Conv", [tanh.input[0], "transformer.mix.weight"], ["mixed"], kernel_shape=[1, 1])
    model.graph.node.insert(list(model.graph.node).index(tanh), mix)
    tanh.input[0] = "mixed"
    onnx.save_model(
        model, folder / entry.file, save_as_external_data=True, location="step.data", size_threshold=0
    )  # fmt: skip
    data = {name: sha256_of(folder / name) for name in (entry.file, "step.data")}
    step = replace(entry, data=("step.data",), sha256=data)
    manifest = replace(machine.bundle.manifest, graphs={**machine.bundle.manifest.graphs, "step": step})
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return Bundle(folder, manifest)


def test_a_styles_engine_is_the_models_own_with_other_weights(
    make: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LoRA is merged while the server runs, and its step is refitted from the one that was built."""
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    machine = make("tensorrt", built=False)
    machine.order = replace(machine.order, options=BuildOptions(refit=True))
    bundle, file = weighted(machine), tmp_path / "style.safetensors"
    factors = np.float32([[1, 2, 3, 4]]), np.float32([[0.1], [0.2], [0], [0]])
    names = (f"transformer.mix.lora_{letter}.weight" for letter in "AB")
    save_file(dict(zip(names, factors, strict=True)), file)
    words = Options(**WORDS, seed=1, num_inference_steps=3, height=32, width=32)
    options = ServerOptions(batches=(1, 2), sizes=((32, 32),))
    with Server(
        {"toy": bundle.folder}, engine=machine.backend(), loras={"style": file}, options=options
    ) as server:  # fmt: skip
        asked = [ImageRequest(prompt="a star", model=name, options=words) for name in ("toy", "toy@style", "toy")]
        painted = [ticket.result(60).pictures[0].latent for ticket in [server.submit(one) for one in asked]]
    made = styled(bundle, Lora(file), paths.styles())
    expected: list[Any] = []
    for one in (bundle, made):
        with Pipeline(one, OrtBackend(OrtOptions(threads=1))) as pipeline:
            expected.append(pipeline("a star", **words).pictures[0].latent)
    assert not np.array_equal(*expected)
    for came, wanted in zip(painted, (*expected, expected[0]), strict=True):
        np.testing.assert_array_equal(came, wanted)
    reports = {path.parent.name: json.loads(path.read_bytes()) for path in machine.order.folder.rglob("report.json")}
    (donor,) = [one["refitted_from"] for one in reports.values() if one["refitted_from"]]
    assert (reports[donor]["graph"], reports[donor]["refitted_from"]) == ("step", "")
