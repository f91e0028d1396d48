"""A real bundle of a tiny checkpoint: its graphs compute what diffusers computes, and say what they are."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tokenizers import Tokenizer

from lssgen.bundle import Bundle, read_bundle, verify
from lssgen.manifest import Gates
from lssgen.models.nets.latent_upsampler import LatentUpSampler

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""float32 with sums in another order: a few 1e-6 of values around 1, and some room for other processors."""
PROMPTS = ["a red circle", "the ring is left of the circle!"]


@pytest.fixture(scope="module")
def bundle(sd3_bundle: Bundle) -> Bundle:
    return sd3_bundle


@pytest.fixture(scope="module")
def pipeline(sd3: Path) -> Any:
    return StableDiffusion3Pipeline.from_pretrained(sd3)


def run(bundle: Bundle, name: str, **inputs: Any) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 2  # warnings, see test_onnx_runtime_has_nothing_to_say
    session = ort.InferenceSession(bundle.path(bundle.manifest.graphs[name].file), options)
    return session.run(None, {key: np.asarray(value) for key, value in inputs.items()})


def ids_of(bundle: Bundle, prompts: list[str]) -> dict[str, np.ndarray]:
    found = {}
    for rule in bundle.manifest.tokenizers:
        tokenizer = Tokenizer.from_file(str(bundle.path(rule.file)))
        tokenizer.enable_truncation(rule.length)
        rows = [tokenizer.encode(prompt).ids for prompt in prompts]
        found[rule.port] = np.array([row + [rule.pad_id] * (rule.length - len(row)) for row in rows])
    return found


def test_bundle_is_whole_and_unchanged(bundle: Bundle) -> None:
    verify(read_bundle(bundle.folder))


def test_bundle_has_every_graph_of_the_contract(bundle: Bundle) -> None:
    spaces = {f"transition_{space}" for space in ("resnet", "latent", "pixel", "dct")}
    assert set(bundle.manifest.graphs) == {"text", "step", "decode", "encode", *spaces}


def test_folder_holds_nothing_that_the_manifest_does_not_name(bundle: Bundle) -> None:
    graphs = bundle.manifest.graphs.values()
    named = {file for graph in graphs for file in graph.sha256} | {tokens.file for tokens in bundle.manifest.tokenizers}
    assert {path.name for path in bundle.folder.iterdir()} == named | {"manifest.json"}


def test_manifest_ports_are_the_ports_onnx_runtime_sees(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs.values():
        session = ort.InferenceSession(bundle.path(graph.file))
        for ports, seen in ((graph.inputs, session.get_inputs()), (graph.outputs, session.get_outputs())):
            assert [(port.name, list(port.shape)) for port in ports] == [(value.name, value.shape) for value in seen]


def test_outputs_of_text_are_inputs_of_step(bundle: Bundle) -> None:
    taken = {port.name: port for port in bundle.manifest.graphs["step"].inputs}
    for port in bundle.manifest.graphs["text"].outputs:
        assert taken[port.name].shape == ("branches", *port.shape)


def test_every_graph_was_probed_at_every_resolution(bundle: Bundle) -> None:
    for name, graph in bundle.manifest.graphs.items():
        assert len(graph.probes) == (1 if name == "text" or name.startswith("transition") else 2)
        assert all(probe.finite and probe.error < 1e-4 < probe.bound for probe in graph.probes)


def test_tokenizers_give_the_ids_of_the_pipeline(bundle: Bundle, pipeline: Any) -> None:
    originals = {
        "input_ids": pipeline.tokenizer,
        "input_ids_2": pipeline.tokenizer_2,
        "input_ids_3": pipeline.tokenizer_3,
    }
    lengths = {rule.port: rule.length for rule in bundle.manifest.tokenizers}
    prompts = ["", "a red circle, ümlaut 你好 🙂 don't!", "red " * 90]
    for port, ids in ids_of(bundle, prompts).items():
        wanted = originals[port](prompts, padding="max_length", truncation=True, max_length=lengths[port]).input_ids
        assert ids.tolist() == wanted


def test_text_is_the_encode_prompt_of_diffusers(bundle: Bundle, pipeline: Any) -> None:
    wanted, _, pooled, _ = pipeline.encode_prompt(PROMPTS, PROMPTS, PROMPTS, max_sequence_length=24)
    got = run(bundle, "text", **ids_of(bundle, PROMPTS))
    np.testing.assert_allclose(got[0], wanted.detach(), **CLOSE)
    np.testing.assert_allclose(got[1], pooled.detach(), **CLOSE)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (3, 12, 32)])
@pytest.mark.parametrize("weights", [(1.0,), (-3.0, 4.0), (-3.0, 6.0, -2.0)], ids=["plain", "guided", "skipping"])
def test_step_is_the_transformer_guidance_and_update(
    bundle: Bundle, pipeline: Any, batch: int, height: int, width: int, weights: tuple[float, ...]
) -> None:
    draw = torch.Generator().manual_seed(batch)
    x, noise, *history = (torch.randn(batch, 4, height, width, generator=draw) for _ in range(5))
    text = torch.randn(len(weights), batch, 101, 32, generator=draw)
    pooled = torch.randn(len(weights), batch, 24, generator=draw)
    gates = torch.ones(len(weights), 2)
    gates[2:, 0] = 0
    output = torch.zeros_like(x)
    for branch, weight in enumerate(weights):
        arguments = (0.5 * x, text[branch], pooled[branch], torch.full((batch,), 431.0))
        with torch.no_grad():
            output += weight * pipeline.transformer(*arguments, skip_layers=[0] if branch == 2 else None).sample
    h0 = 0.25 * x + 0.75 * output
    blend = (-0.3, 0.1, 0.05, -0.02)
    row = torch.tensor([431.0, 0.5, 0.25, 0.75, 0.9, 0.2, *blend])  # label c_in h_x h_f keep noise blend[0..3]
    each = torch.tensor(weights)[:, None].expand(-1, batch)
    got = run(
        bundle,
        "step",
        latent=x,
        history=torch.stack(history),
        noise=noise,
        row=row.expand(batch, -1),
        layer_gates=gates,
        guidance_weights=each,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
    )
    seen = sum(weight * estimate for weight, estimate in zip(blend, (h0, *history), strict=True))
    np.testing.assert_allclose(got[0], 0.9 * x + seen + 0.2 * noise, **CLOSE)
    np.testing.assert_allclose(got[1], torch.stack([h0, *history[:2]]), **CLOSE)


def test_decode_is_the_picture_of_the_pipeline_to_one_grey_level(bundle: Bundle, pipeline: Any) -> None:
    latent = torch.randn(2, 4, 10, 14)
    with torch.no_grad():
        painted = pipeline.vae.decode(latent / 1.5305 + 0.0609).sample
    wanted = [np.asarray(image, np.int16) for image in pipeline.image_processor.postprocess(painted)]
    (got,) = run(bundle, "decode", latent=latent)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(np.int16) - np.stack(wanted)).max() <= 1


def test_encode_draws_from_the_posterior_in_model_space(bundle: Bundle, pipeline: Any) -> None:
    picture = torch.randint(0, 256, (2, 40, 56, 3), dtype=torch.uint8)
    noise = torch.randn(2, 4, 10, 14)
    with torch.no_grad():
        posterior = pipeline.vae.encode(picture.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    wanted = (posterior.mean + posterior.std * noise - 0.0609) * 1.5305
    (got,) = run(bundle, "encode", picture=picture, posterior_noise=noise)
    np.testing.assert_allclose(got, wanted, **CLOSE)


@pytest.mark.parametrize("space", ["resnet", "latent", "pixel"])
def test_transition_upsamples_and_mixes(bundle: Bundle, pipeline: Any, sd3: Path, space: str) -> None:
    latent, noise, posterior_noise = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 12, 16), torch.randn(2, 4, 12, 16)
    upsampler = LatentUpSampler.from_pretrained(sd3 / "upsampler")
    ups = {
        "resnet": upsampler,
        "latent": lambda z: torch.nn.functional.interpolate(z, scale_factor=2, mode="bicubic"),
        "pixel": lambda z: through_pixels(pipeline.vae, z, posterior_noise),
    }
    with torch.no_grad():
        wanted = 0.25 * ups[space](latent) + 0.75 * noise
    more = {"posterior_noise": posterior_noise} if space == "pixel" else {}
    mix = torch.tensor([[0.25, 0.75]] * 2)
    (got,) = run(bundle, f"transition_{space}", latent=latent, noise=noise, mix=mix, **more)
    np.testing.assert_allclose(got, wanted, **CLOSE)


def through_pixels(vae: Any, latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    picture = vae.decode(latent / 1.5305 + 0.0609).sample
    posterior = vae.encode(torch.nn.functional.interpolate(picture, scale_factor=2, mode="bicubic")).latent_dist
    return (posterior.mean + posterior.std * noise - 0.0609) * 1.5305


def test_onnx_runtime_has_nothing_to_say(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong static size in a graph is a warning at every run."""
    latent, picture = np.zeros((1, 4, 8, 10), np.float32), np.zeros((1, 32, 40, 3), np.uint8)
    noise, mix = np.zeros((1, 4, 16, 20), np.float32), np.ones((1, 2), np.float32)
    run(bundle, "text", **ids_of(bundle, ["a circle"]))
    run(bundle, "decode", latent=latent)
    run(bundle, "encode", picture=picture, posterior_noise=latent)
    run(bundle, "transition_resnet", latent=latent, noise=noise, mix=mix)
    run(bundle, "transition_pixel", latent=latent, noise=noise, mix=mix, posterior_noise=noise)
    assert "warn" not in capfd.readouterr().err.lower()


def test_manifest_tells_the_upsampler_and_its_licence(bundle: Bundle) -> None:
    upsampler = bundle.manifest.upsampler
    assert upsampler is not None
    assert upsampler.licence == "CC0-1.0"
    assert any("licence: CC0-1.0" in note for note in bundle.manifest.notes)


def test_manifest_tells_which_layers_are_skipped(bundle: Bundle) -> None:
    assert bundle.manifest.feeds(Gates) == (Gates(skipped=(0,)),)
    (gates,) = (port for port in bundle.manifest.graphs["step"].inputs if port.name == "layer_gates")
    assert gates.shape == ("branches", 2)
