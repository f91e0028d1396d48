import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import denoise, fake_pipeline

import lssgen
from lssgen.errors import BackendError, BuildError, BundleError, PlanError, PromptError
from lssgen.ports import Array
from lssgen.runtime import Pipeline, Progress
from lssgen.runtime.options import Options, options_from_request, request_from_options
from lssgen.runtime.text import PromptWarning
from lssgen.testing import Ask

LATENT = Options(scaling_space="latent")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hieght": 64}, "did you mean 'height'"),
        ({"num_images": 0}, "num_images is 0; it must be at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"guidance_rescale": 0.7}, "toy has no guidance_rescale"),
        ({"guidance_rescale": 2.0}, "must lie in 0 to 1"),
        ({"start_sigma": 0.0}, "start_sigma"),
        ({"height": 16}, "below min_resolution"),
        ({"height": 72}, "multiples of 16 px"),
        ({"scaling_space": "resnet"}, "no graph for scaling_space 'resnet', only for latent, pixel.*--upsampler"),
        ({"skip_layers": True}, "without layer gates.*--skip-layers"),
        ({"seed": -1}, "seed is -1"),
        ({"original_size": (64, 64)}, "toy is not told sizes; leave out original_size"),
        ({"crops_coords_top_left": (0, -1)}, r"crops_coords_top_left is \(0, -1\); .* each at least 0"),
        ({"target_size": (64,)}, "must be two numbers of pixels, each at least 1"),
        ({"denoising_end": 0.8}, "unknown option 'denoising_end'"),
        ({"latents": None}, "unknown option 'latents'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_loads(tmp_path: Path, options: Any, words: str) -> None:
    pipeline = fake_pipeline(tmp_path)
    with pytest.raises(PlanError, match=words):
        pipeline.paint("a", **{**LATENT, **options})
    assert pipeline.backend.calls == []  # type: ignore[attr-defined]


def test_no_prompt_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    with pytest.raises(PromptError, match="no prompt was given"):
        pipeline([], **LATENT)
    assert len(pipeline("", **LATENT).pictures) == 1


def test_pictures_come_in_the_order_of_prompts_with_counted_seeds(tmp_path: Path) -> None:
    result = fake_pipeline(tmp_path)(["a", "red"], num_images=2, batch=3, seed=7, **LATENT)
    assert [(p.prompt, p.seed) for p in result.pictures] == [("a", 7), ("a", 8), ("red", 9), ("red", 10)]
    assert (result.latents.shape, result.latents.dtype) == ((4, 4, 8, 8), np.float32)
    assert [image.size for image in result.images] == [(64, 64)] * 4


def test_every_batch_is_handed_out_as_soon_as_it_is_painted(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    results = pipeline.paint("a", num_images=3, **LATENT)
    next(results)
    assert pipeline.backend.calls.count("decode") == 1  # type: ignore[attr-defined]


def test_progress_counts_every_step_of_the_run_once(tmp_path: Path) -> None:
    seen: list[Progress] = []
    plan = fake_pipeline(tmp_path)("a", num_images=2, on_step=seen.append, **LATENT).plan
    assert [p.done for p in seen] == list(range(1, 2 * plan.evaluations + 1))
    assert {p.total for p in seen} == {2 * plan.evaluations}
    assert (seen[0].stage, seen[0].stages, seen[0].width_px, seen[-1].stage) == (0, 2, 32, 1)


def test_an_interrupted_pipeline_paints_again(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    whole = pipeline("a", **LATENT).latents

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline("a", on_step=stop, **LATENT)
    assert np.array_equal(pipeline("a", **LATENT).latents, whole)


def test_a_negative_prompt_without_guidance_warns(tmp_path: Path) -> None:
    with pytest.warns(PromptWarning, match="has no effect"):
        fake_pipeline(tmp_path)("a", negative_prompt="red", guidance_scale=1.0, **LATENT)


def test_zeros_stand_for_a_negative_prompt_that_was_not_given_where_the_bundle_says_so(tmp_path: Path) -> None:
    heard: list[Array] = []

    def spy(ask: Ask) -> Array:
        heard.append(ask.extra["text"].copy())
        return denoise(ask)

    fake_pipeline(tmp_path, network=spy, empty_negative="zeros")("red", **LATENT)
    assert (heard[0] == 0).all()
    assert (heard[1] > 0).all()


@pytest.mark.parametrize(
    ("rule", "given", "texts"),
    [
        ("zeros", {}, 1),
        ("zeros", {"negative_prompt": None}, 1),
        ("zeros", {"negative_prompt": ""}, 2),
        ("encode", {}, 2),
        ("encode", {"negative_prompt": ""}, 2),
    ],
)
def test_an_empty_negative_prompt_is_encoded_wherever_it_is_given(
    tmp_path: Path, rule: str, given: Any, texts: int
) -> None:
    pipeline = fake_pipeline(tmp_path, empty_negative=rule)
    pipeline("red", **given, **LATENT)
    assert pipeline.backend.calls.count("text") == texts  # type: ignore[attr-defined]


def test_the_plan_is_that_of_the_run(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    assert pipeline.plan(num_inference_steps=5, **LATENT) == pipeline("a", num_inference_steps=5, **LATENT).plan


def test_a_request_says_everything_again(tmp_path: Path) -> None:
    bundle = fake_pipeline(tmp_path).bundle
    request = request_from_options(bundle, Options(seed=3, num_inference_steps=9, shorten=True, **LATENT))
    assert request_from_options(bundle, options_from_request(request)) == request


@pytest.mark.parametrize("negative", [None, "", "red"])
def test_a_picture_and_its_request_know_whether_a_negative_prompt_was_given(
    tmp_path: Path, negative: str | None
) -> None:
    result = fake_pipeline(tmp_path)("a", negative_prompt=negative, **LATENT)
    assert (result.request.negative_prompt, result.pictures[0].negative_prompt) == (negative, negative)
    assert request_from_options(fake_pipeline(tmp_path).bundle, options_from_request(result.request)) == result.request


def test_lssgen_load_paints_with_onnx_graphs(toy: Path) -> None:
    with lssgen.load(toy, threads=1) as pipeline:
        result = pipeline("a red circle", num_images=3, batch=2, **LATENT)
    assert np.isfinite(result.latents).all()
    alone = lssgen.load(toy, threads=1)("a red circle", seed=2, **LATENT).latents[0]
    assert result.latents[2] == pytest.approx(alone, abs=1e-6)


def test_a_bundle_is_found_by_its_name(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    shutil.copytree(toy, tmp_path / "bundles" / "mine")
    assert lssgen.load("mine").bundle.manifest.family == "toy"


def test_no_bundle_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: .*lssgen-export"):
        lssgen.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["step.onnx", "decode.onnx"])
def test_a_damaged_graph_is_named(toy: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(toy, tmp_path / "toy")
    (tmp_path / "toy" / name).write_bytes((toy / name).read_bytes()[:100])
    with pytest.raises(BundleError, match=f"{name} has changed since the export"):
        lssgen.load(tmp_path / "toy", threads=1)("a", **LATENT)


def test_a_missing_file_is_named(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "toy")
    (tmp_path / "toy" / "text.onnx").unlink()
    with pytest.raises(BundleError, match=r"text\.onnx is missing"):
        lssgen.load(tmp_path / "toy")


def test_an_unknown_engine_is_refused_with_the_known_ones(toy: Path) -> None:
    with pytest.raises(BackendError, match="no engine called 'torch'; choose one of onnxruntime, "):
        lssgen.load(toy, engine="torch")


def test_a_graph_that_does_not_load_although_it_is_whole_is_the_engines_error(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = lssgen.load(toy)

    def refuse(*_: object, **__: object) -> None:
        raise BuildError("no kernel")

    monkeypatch.setattr(pipeline.backend, "open", refuse)
    with pytest.raises(BuildError, match="no kernel"):
        pipeline("a", **LATENT)


def test_a_closed_pipeline_loads_again(toy: Path) -> None:
    pipeline = lssgen.load(toy, threads=1)
    first = pipeline("a", **LATENT).latents
    pipeline.close()
    assert np.array_equal(pipeline("a", **LATENT).latents, first)
    assert isinstance(pipeline, Pipeline)
