"""A fuzz target for each reader of the runtime: whatever comes, it is read or refused in words, and in time."""

import warnings
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from hostile import MANY, Tally, corpus, edited, mutated
from hypothesis import given
from hypothesis import strategies as st
from toy_bundle import DEFAULTS

from lssgen.bundle import MANIFEST, read_bundle
from lssgen.errors import LssgenError
from lssgen.images import PictureError, read_mask, read_picture, upright_size
from lssgen.manifest import Heard, Tokens
from lssgen.models.configs import configs_from_folder
from lssgen.ports import Array, Port
from lssgen.runtime import Pipeline
from lssgen.runtime.options import Options, request_from_options
from lssgen.runtime.prompt_file import read_prompt_file
from lssgen.runtime.record import read_record, settings_from_file
from lssgen.testing import FakeBackend, FakeModel, Network, decode_network, fake_bundle, step_network

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_manifests(toy: Path, tmp_path: Path, tally: Tally) -> None:
    """Read, and planned and opened where that succeeds."""
    import lssgen

    folder = copytree(toy, tmp_path / "toy")
    whole = (toy / MANIFEST).read_bytes()

    @MANY
    @given(data=st.one_of(edited(whole), mutated([whole, *corpus("manifests")])))
    def target(data: bytes) -> None:
        (folder / MANIFEST).write_bytes(data)
        with tally.expect(LssgenError):
            read_bundle(folder)
            with lssgen.load(folder, verify="never", threads=1) as pipeline:
                pipeline.plan(scaling_space="latent")
                if pipeline.bundle.manifest.facts.defaults == DEFAULTS:
                    pipeline("a red circle", scaling_space="latent")

    target()


def test_prompts(tmp_path: Path, tally: Tally) -> None:
    """Painted, by every rule of weighting."""
    pipeline = _speaking_pipeline(tmp_path)
    seeds = [text.decode() for text in corpus("prompts")]
    marks = st.text(alphabet="()[]{}<>:\\|.,+-0123456789 \n\taredBREAK", max_size=80)
    prompts = st.one_of(st.text(max_size=80), marks, st.sampled_from(seeds), st.sampled_from(["(" * 9999, "a" * 20001]))
    odd = st.one_of(
        prompts, st.none(), st.integers(), st.binary(max_size=5), st.lists(st.one_of(prompts, st.none()), max_size=3)
    )

    @MANY
    @given(prompt=odd, negative=st.one_of(st.none(), prompts), weighting=st.sampled_from(["none", "a1111", "comfyui"]))
    def target(prompt: Any, negative: str | None, weighting: Any) -> None:
        with tally.expect(LssgenError):
            painted = pipeline(prompt, negative_prompt=negative, prompt_weighting=weighting, **ONE)
            assert np.isfinite(painted.latents).all()

    target()


ONE: Options = {"min_resolution": 64, "num_inference_steps": 2, "scaling_space": "latent"}


def _speaking_pipeline(folder: Path) -> Pipeline:
    """A pipeline whose words can be weighed."""
    from dataclasses import replace

    from toy_bundle import FACTS

    from lssgen.bundle import Bundle

    def rows(given: Any) -> dict[str, Array]:
        return {"rows": np.stack([given["ids"] + 1.0, np.cos(given["ids"])], -1).astype(np.float32)}

    def denoise(ask: Any) -> Array:
        return np.tanh(ask.u) + np.tanh(ask.extra["rows"]).mean((1, 2))[:, None, None, None]

    text = Network(
        inputs=(Port("ids", "int64", ("batch", "tokens")),),
        outputs=(Port("rows", "float32", ("batch", "tokens", 2)),),
        run=rows,
        runs="prompt",
    )
    networks = {"text": text, "step": step_network(denoise, text={"rows": ("tokens", 2)}), "decode": decode_network()}
    bundle = fake_bundle(folder, FakeModel(facts=FACTS, networks=networks))
    tokens = Tokens(port="ids", file="tokenizer.json", length=8, pad_id=0, heard=Heard(output="rows"))
    return Pipeline(Bundle(folder, replace(bundle.manifest, tokenizers=(tokens,))), FakeBackend(networks))


def test_options(toy: Path, tally: Tally) -> None:
    """Every keyword of a run with whatever somebody might pass."""
    bundle = read_bundle(toy)
    numbers = st.one_of(
        st.integers(), st.floats(), st.sampled_from([0, -1, 1, 64, 10**12, 2**63, 1e-320, "5", b"5", 5j, None, True])
    )
    odd = st.one_of(
        numbers, st.text(max_size=5), st.lists(numbers, max_size=4), st.tuples(numbers, numbers), st.just({})
    )

    @MANY
    @given(options=st.dictionaries(st.sampled_from(list(Options.__annotations__)), odd, min_size=1, max_size=2))
    def target(options: Any) -> None:
        with tally.expect(LssgenError):
            request_from_options(bundle, {"scaling_space": "latent", **options})

    target()


def test_prompt_files(tmp_path: Path, tally: Tally) -> None:
    file = tmp_path / "prompts.jsonl"

    @MANY
    @given(data=mutated(corpus("prompt_files")), bad_lines=st.sampled_from(["stop", "skip"]))
    def target(data: bytes, bad_lines: Any) -> None:
        file.write_bytes(data)
        with tally.expect(LssgenError):
            read_prompt_file(file, bad_lines=bad_lines)

    target()


def test_configurations(toy: Path, tmp_path: Path, tally: Tally) -> None:
    """run.json, and other files for --config; what they ask for is planned."""
    file, bundle, seeds = tmp_path / "run.json", read_bundle(toy), corpus("configurations")

    @MANY
    @given(data=st.one_of(mutated(seeds), *map(edited, seeds)))
    def target(data: bytes) -> None:
        file.write_bytes(data)
        with tally.expect(LssgenError):
            request_from_options(bundle, settings_from_file(file).options)
        with tally.expect(LssgenError):
            read_record(file)

    target()


def test_component_configurations(tmp_path: Path, tally: Tally) -> None:
    seeds = corpus("component_configurations")

    @MANY
    @given(index=mutated(seeds), config=mutated(seeds))
    def target(index: bytes, config: bytes) -> None:
        (tmp_path / "unet").mkdir(exist_ok=True)
        (tmp_path / "model_index.json").write_bytes(index)
        (tmp_path / "unet/config.json").write_bytes(config)
        with tally.expect(LssgenError):
            configs_from_folder(tmp_path)

    target()


def test_pictures(tmp_path: Path, tally: Tally) -> None:
    file = tmp_path / "x.png"

    @MANY
    @given(data=mutated(corpus("pictures")))
    def target(data: bytes) -> None:
        file.write_bytes(data)
        for read in (read_picture, read_mask, upright_size):
            with tally.expect(PictureError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(file)

    target()
