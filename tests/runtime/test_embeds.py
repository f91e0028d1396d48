"""Embeddings in place of a text encoder: the same picture, bit for bit; and what does not fit is refused in words."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import lssgen
from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle
from lssgen.commands import encode
from lssgen.commands import run as run_command
from lssgen.errors import BundleError, PromptError
from lssgen.manifest import Text
from lssgen.ports import Port
from lssgen.runtime import Pipeline
from lssgen.runtime.embeds import Embeds, heard_from, read_embeds, write_embeds
from lssgen.runtime.options import request_from_options
from lssgen.runtime.record import read_record
from lssgen.serving.server import Server

FEW: dict[str, Any] = {"num_inference_steps": 2, "seed": 3}


@pytest.fixture
def pipeline(demo: Bundle) -> Pipeline:
    """The demo model, whose text is a row for each of 16 tokens and a vector for all."""
    return lssgen.load(demo.folder, engine="onnxruntime", threads=1, verify="never")


@pytest.fixture
def bare(demo: Bundle, tmp_path: Path) -> Path:
    """The demo model without its text encoder."""
    folder = shutil.copytree(demo.folder, tmp_path / "bare")
    graphs = {name: graph for name, graph in demo.manifest.graphs.items() if name != "text"}
    for file in (demo.manifest.graphs["text"].file, *demo.manifest.graphs["text"].data):
        (folder / file).unlink()
    tokenizers = tuple(replace(tokens, heard=None) for tokens in demo.manifest.tokenizers)
    manifest = replace(demo.manifest, graphs=graphs, tokenizers=tokenizers)
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return folder


def test_embeddings_of_a_prompt_paint_what_the_prompt_paints_to_the_last_bit(
    pipeline: Pipeline, bare: Path, tmp_path: Path
) -> None:
    """Through a file, in a bundle that has no encoder, with guidance away from a negative prompt."""
    prompts = ["a red star", "a blue circle on a white background"]
    expected = pipeline(prompts, negative_prompt="green", **FEW)
    write_embeds(pipeline.encode(prompts, negative_prompt="green"), tmp_path / "said.safetensors")
    with lssgen.load(bare, engine="onnxruntime", threads=1, verify="never") as other:
        result = other(prompt_embeds=tmp_path / "said.safetensors", **FEW)
    assert np.array_equal(result.latents, expected.latents)
    assert [picture.prompt for picture in result.pictures] == prompts
    assert [image.tobytes() for image in result.images] == [image.tobytes() for image in expected.images]


def test_embeddings_paint_several_pictures_each_and_share_batches(pipeline: Pipeline) -> None:
    embeds = pipeline.encode(["a red star", "a blue star"]).arrays
    one = pipeline(prompt_embeds=embeds, num_images=2, **FEW)
    other = pipeline(["a red star", "a blue star"], num_images=2, batch=4, **FEW)
    assert np.array_equal(one.latents, other.latents)
    assert [picture.prompt for picture in one.pictures] == [""] * 4


def test_a_negative_of_one_prompt_is_that_of_all(pipeline: Pipeline) -> None:
    arrays = dict(pipeline.encode(["a red star", "a blue star"]).arrays)
    assert arrays["negative_prompt_embeds"].shape == (1, 16, 160)
    for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
        arrays[f"{name}"] = np.repeat(arrays[name], 2, axis=0)
    assert np.array_equal(
        pipeline(prompt_embeds=arrays, **FEW).latents, pipeline(["a red star", "a blue star"], **FEW).latents
    )


def test_without_guidance_no_negative_is_needed(pipeline: Pipeline) -> None:
    arrays = pipeline.encode("a red star", guidance_scale=1.0).arrays
    assert set(arrays) == {"prompt_embeds", "pooled_prompt_embeds"}
    painted = pipeline(prompt_embeds=arrays, guidance_scale=1.0, **FEW)
    assert np.array_equal(painted.latents, pipeline("a red star", guidance_scale=1.0, **FEW).latents)
    with pytest.raises(PromptError, match=r"has no negative_prompt_embeds: encode it too, or switch guidance off"):
        pipeline(prompt_embeds=arrays, **FEW)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_embeds": None}, r"takes prompt_embeds: float32\[tokens, 160\].*prompt_embeds is missing"),
        ({"prompt_embed": np.zeros((1, 16, 160))}, r"not prompt_embed is not among them"),
        ({"prompt_embeds": np.zeros((1, 16, 161))}, r"has the shape \(1, 16, 161\); .* takes \(1, 16, 160\) here"),
        ({"prompt_embeds": np.zeros((1, 15, 160))}, r"has the shape \(1, 15, 160\); .* takes \(1, 16, 160\) here"),
        ({"prompt_embeds": np.zeros((16, 160))}, r"has the shape \(16, 160\)"),
        ({"prompt_embeds": np.zeros((2, 16, 160))}, r"pooled_prompt_embeds of prompt_embeds has the shape \(1, 128\)"),
        ({"prompt_embeds": np.zeros((0, 16, 160)), "pooled_prompt_embeds": np.zeros((0, 128))}, r"has the shape \(0,"),
        ({"prompt_embeds": np.full((1, 16, 160), np.nan)}, r"holds NaN or infinity; encode the prompt again"),
        ({"prompt_embeds": np.full((1, 16, 160), 1e300)}, r"holds NaN or infinity"),
        ({"prompt_embeds": np.array("word")}, r"holds no numbers, but <U4"),
        ({"negative_pooled_prompt_embeds": None}, r"holds negative_prompt_embeds, but no negative_pooled_prompt_embed"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(pipeline: Pipeline, change: Mapping[str, Any], words: str) -> None:
    arrays: dict[str, Any] = {**pipeline.encode("a red star").arrays, **change}
    with pytest.raises(PromptError, match=words):
        pipeline.paint(prompt_embeds={name: value for name, value in arrays.items() if value is not None}, **FEW)


def test_a_negative_text_beside_embeddings_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(PromptError, match=r"negative_prompt is a text.*as negative_prompt_embeds"):
        pipeline.paint(prompt_embeds=pipeline.encode("a").arrays, negative_prompt="green", **FEW)


def test_a_bundle_without_encoder_says_what_it_needs(bare: Path) -> None:
    with (
        lssgen.load(bare, engine="onnxruntime", verify="never") as pipeline,
        pytest.raises(PromptError, match=r"without its text encoder: give embeddings .*--prompt-embeds"),
    ):
        pipeline("a red star")
    with pytest.raises(BundleError, match=r"without its text encoder, and requests bring words"):
        Server(bare, engine="onnxruntime", verify="never")


@pytest.fixture
def longest(toy: Path, tmp_path: Path) -> Path:
    """A bundle whose prompts take as many tokens as they have."""
    folder = shutil.copytree(toy, tmp_path / "longest")
    manifest = read_bundle(toy).manifest
    tokenizers = tuple(replace(tokens, pad_to="longest") for tokens in manifest.tokenizers)
    (folder / MANIFEST).write_bytes(manifest_json(replace(manifest, tokenizers=tokenizers)))
    return folder


def test_prompts_of_unequal_lengths_go_into_files_of_their_own(longest: Path) -> None:
    with (
        lssgen.load(longest, engine="onnxruntime", verify="never") as pipeline,
        pytest.raises(PromptError, match=r"take unequally many tokens: encode each into a file of its own"),
    ):
        pipeline.encode(["a", "red red red red"], scaling_space="latent")


def test_prompts_of_any_length_paint_from_their_own_file(longest: Path) -> None:
    with lssgen.load(longest, engine="onnxruntime", verify="never") as pipeline:
        for prompt in ("a", "red red red red"):
            arrays = pipeline.encode(prompt, scaling_space="latent").arrays
            painted = pipeline(prompt_embeds=arrays, scaling_space="latent")
            assert np.array_equal(painted.latents, pipeline(prompt, scaling_space="latent").latents)


@pytest.mark.parametrize("name", ["prompt_mask", "prompt_attention_mask", "prompt_embeds_mask"])
def test_masks_go_by_any_of_diffusers_names(demo: Bundle, name: str) -> None:
    step = demo.manifest.graphs["step"]
    port = Port("prompt_mask", "float32", ("branches", "batch", "tokens"))
    feeds = {**step.feeds, "prompt_mask": Text(output="prompt_mask")}
    graphs = {**demo.manifest.graphs, "step": replace(step, inputs=(*step.inputs, port), feeds=feeds)}
    request = request_from_options(demo, {})
    arrays = {
        "prompt_embeds": np.zeros((1, 16, 160)),
        "pooled_prompt_embeds": np.zeros((1, 128)),
        name: np.ones((1, 16)),
    }
    embeds = Embeds({**arrays, **{f"negative_{key}": value for key, value in arrays.items()}})
    (heard,) = heard_from(replace(demo.manifest, graphs=graphs), request, embeds)
    assert heard["positive"]["prompt_mask"].shape == heard["negative"]["prompt_mask"].shape == (16,)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64", "BOOL", "I64"])
def test_numbers_of_every_type_become_float32(tmp_path: Path, kind: str) -> None:
    numbers = np.array([[1.0, 0.0, 1.0, 1.0]])
    types: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BOOL": "?", "I64": "<i8"}
    if kind == "BF16":
        data = (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        data = numbers.astype(types[kind]).tobytes()
    header = json.dumps({"x": {"dtype": kind, "shape": [1, 4], "data_offsets": [0, len(data)]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (array,) = read_embeds(tmp_path / "x.safetensors").arrays.values()
    assert array.dtype == np.float32
    assert np.array_equal(array, numbers)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    embeds = Embeds({"prompt_embeds": np.ones((1, 2, 3), np.float32)}, ("a prompt",))
    write_embeds(embeds, tmp_path / "x.safetensors")
    back = read_embeds(tmp_path / "x.safetensors")
    assert back.prompts == ("a prompt",)
    assert np.array_equal(back.arrays["prompt_embeds"], embeds.arrays["prompt_embeds"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 100, (10**9).to_bytes(8, "little") + b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(PromptError, match=r"x\.safetensors is not a whole safetensors file"):
        read_embeds(tmp_path / "x.safetensors")
    with pytest.raises(PromptError, match=r"cannot be read"):
        read_embeds(tmp_path)


def test_metadata_of_others_is_no_prompt(tmp_path: Path) -> None:
    save_file({"prompt_embeds": np.zeros((1, 2), np.float32)}, tmp_path / "x.safetensors", {"prompts": "[1, {"})
    assert read_embeds(tmp_path / "x.safetensors").prompts == ()


def test_texts_are_as_many_as_the_prompts_of_a_file(pipeline: Pipeline) -> None:
    arrays = pipeline.encode(["a red star", "a blue star"]).arrays
    with pytest.raises(PromptError, match=r"holds 2 prompts, and 3 texts came for them"):
        pipeline.paint(["1", "2", "3"], prompt_embeds=arrays, **FEW)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_commands_encode_here_and_paint_there(
    demo: Bundle, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, engine = tmp_path / "star.safetensors", ["--engine", "onnxruntime", "--verify", "never"]
    assert encode.main(["a red star", "--bundle", str(demo.folder), "-o", str(file), *engine]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    paint = ["--steps", "2", "--seed", "3", "--quiet", *engine]
    one = ["--bundle", str(bare), "--prompt-embeds", str(file), "-o", str(tmp_path / "one" / "star.png")]
    assert run_command.main([*one, *paint]) == 0
    other = ["a red star", "--bundle", str(demo.folder), "-o", str(tmp_path / "other" / "star.png")]
    assert run_command.main([*other, *paint]) == 0
    assert (tmp_path / "one" / "star.png").read_bytes() == (tmp_path / "other" / "star.png").read_bytes()
    record = read_record(next((tmp_path / "one").glob("*.run.json")))
    assert list(record.start) == ["star.safetensors"]
    assert record.prompts == ["a red star"]


def test_a_recorded_run_wants_its_embeddings_again(
    demo: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, rest = tmp_path / "star.safetensors", ["--quiet", "--engine", "onnxruntime", "--verify", "never"]
    with lssgen.load(demo.folder, engine="onnxruntime", verify="never") as pipeline:
        write_embeds(pipeline.encode("a red star"), file)
    out = ["-o", str(tmp_path / "out" / "star.png")]
    words = ["--bundle", str(demo.folder), "--prompt-embeds", str(file), "--steps", "2"]
    assert run_command.main([*words, *out, *rest]) == 0
    record = next((tmp_path / "out").glob("*.run.json"))
    assert run_command.main(["--config", str(record), *out, *rest]) == 1
    assert (
        "give the same with --init-image, --mask-image, --condition, --reference and --prompt-embeds"
        in capsys.readouterr().err
    )


def test_a_manifest_without_text_graph_is_read(bare: Path) -> None:
    assert "text" not in read_bundle(bare).manifest.graphs
