from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import SPACES, denoise
from toy_bundle import FACTS

from lssgen.bundle import MANIFEST, Bundle, Manifest, Tokens, manifest_json
from lssgen.errors import BundleError, PromptError
from lssgen.ports import Array, Port
from lssgen.runtime import Pipeline
from lssgen.runtime.text import PromptWarning, TextEncoder
from lssgen.testing import FakeBackend, FakeModel, Network, decode_network, fake_bundle, step_network

A, RED, BLUE = 2, 3, 4  # of the fake tokenizer; 0 fills up, 1 is unknown


def encoder(folder: Path, **rules: Any) -> tuple[TextEncoder, FakeBackend]:
    """An encoder whose conditioning is the ids and the mask it was fed."""
    mask = rules.get("mask_port")
    ports = [Port(name, "int64", ("batch", "tokens")) for name in ("ids", *([mask] if mask else []))]
    text = Network(
        inputs=tuple(ports),
        outputs=tuple(Port(f"heard_{port.name}", "float32", port.shape) for port in ports),
        run=lambda given: {f"heard_{name}": value for name, value in given.items()},
    )
    bundle = fake_bundle(folder, FakeModel(facts=FACTS, networks={"text": text}))
    tokens = Tokens(**{"port": "ids", "file": "tokenizer.json", "length": 6, "pad_id": 0, **rules})
    manifest = Manifest(**{f: getattr(bundle.manifest, f) for f in Manifest.__slots__} | {"tokenizers": (tokens,)})
    backend = FakeBackend({"text": text})
    engine = backend.load(folder / "text.onnx", name="toy/text")
    return TextEncoder(Bundle(folder, manifest), backend, lambda _: engine), backend


@pytest.mark.parametrize(
    ("rules", "heard"),
    [
        ({}, [A, RED, 0, 0, 0, 0]),
        ({"pad_side": "left"}, [0, 0, 0, 0, A, RED]),
        ({"pad_to": "longest"}, [A, RED]),
        ({"pad_to": "longest", "pad_multiple": 4}, [A, RED, 0, 0]),
        ({"pad_to": "longest", "pad_multiple": 4, "pad_side": "left", "pad_id": 9}, [9, 9, A, RED]),
    ],
)
def test_a_prompt_is_filled_up_as_the_manifest_says(tmp_path: Path, rules: Any, heard: list[int]) -> None:
    text, _ = encoder(tmp_path, **rules)
    assert text.encode("a red", text.lengths("a red"))["heard_ids"].tolist() == heard


def test_the_mask_covers_the_prompt_and_not_the_filling(tmp_path: Path) -> None:
    text, _ = encoder(tmp_path, mask_port="mask", pad_side="left")
    assert text.encode("a red", (6,))["heard_mask"].tolist() == [0, 0, 0, 0, 1, 1]


def test_a_long_prompt_is_cut_and_the_warning_quotes_what_is_lost(tmp_path: Path) -> None:
    text, _ = encoder(tmp_path, length=3)
    with pytest.warns(PromptWarning, match="reads 3 tokens and does not hear 'blue square'"):
        heard = text.encode("a a red blue square", (3,))
    assert heard["heard_ids"].tolist() == [A, A, RED]


def test_a_prompt_that_fits_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    text, _ = encoder(tmp_path, length=3)
    text.encode("a red blue", (3,))
    assert not recwarn.list


def test_the_empty_prompt_is_a_prompt(tmp_path: Path) -> None:
    text, _ = encoder(tmp_path, pad_to="longest", pad_multiple=2)
    assert text.encode("", text.lengths(""))["heard_ids"].tolist() == [0, 0]


def test_each_distinct_prompt_is_encoded_once(tmp_path: Path) -> None:
    text, backend = encoder(tmp_path)
    for prompt in ("a red", "a blue", "a red", "a blue"):
        text.encode(prompt, (6,))
    assert backend.calls == ["text", "text"]


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    text, _ = encoder(tmp_path)
    with pytest.raises(PromptError, match="cannot be read"):
        text.lengths("a \ud800")


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path, FakeModel(facts=FACTS, networks={}))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer .*tokenizer\.json cannot be read"):
        TextEncoder(bundle, FakeBackend({}), lambda _: pytest.fail("nothing to load"))


def test_prompts_of_different_lengths_give_the_pictures_they_give_alone(tmp_path: Path) -> None:
    """Where prompts are filled up to the longest, the longest of the batch must not matter."""

    def average(given: Any) -> dict[str, Array]:
        return {"text": given["ids"].astype(np.float32).mean(1, keepdims=True)}

    text = Network(
        inputs=(Port("ids", "int64", ("batch", "tokens")),),
        outputs=(Port("text", "float32", ("batch", 1)),),
        run=average,
    )
    networks = {"text": text, "step": step_network(denoise), "decode": decode_network(), **SPACES}
    bundle = fake_bundle(tmp_path, FakeModel(facts=FACTS, networks=networks))
    tokens = Tokens(port="ids", file="tokenizer.json", length=8, pad_id=0, pad_to="longest", pad_multiple=2)
    manifest = Manifest(**{f: getattr(bundle.manifest, f) for f in Manifest.__slots__} | {"tokenizers": (tokens,)})
    (tmp_path / MANIFEST).write_bytes(manifest_json(manifest))
    pipeline = Pipeline(Bundle(tmp_path, manifest), FakeBackend(networks))
    prompts = ["a", "a red blue circle", "red"]
    together = pipeline(prompts, batch=3, scaling_space="latent").latents
    for index, prompt in enumerate(prompts):
        alone = pipeline(prompt, seed=index, scaling_space="latent").latents[0]
        assert np.array_equal(together[index], alone)


def test_the_warning_of_a_very_long_prompt_is_short(tmp_path: Path) -> None:
    text, _ = encoder(tmp_path, length=3)
    with pytest.warns(PromptWarning, match=r"does not hear '(red ){20}\.\.\.'$"):
        text.encode("red " * 1000, (3,))
