import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import SPACES, denoise
from tokenizers import Tokenizer
from toy_bundle import FACTS

from lssgen.bundle import MANIFEST, Bundle, manifest_json
from lssgen.engines.base import Engine
from lssgen.engines.demand import Demand
from lssgen.errors import BundleError, PromptError
from lssgen.manifest import Manifest, Tokens
from lssgen.ports import Array, Port
from lssgen.runtime import Pipeline
from lssgen.runtime.text import PromptWarning, TextEncoder, _PortTokenizer
from lssgen.testing import FakeBackend, FakeModel, Network, decode_network, fake_bundle, step_network

A, RED, BLUE = 2, 3, 4  # of the fake tokenizer; 0 fills up, 1 is unknown


@dataclass
class Encoder:
    """A text encoder with its engine."""

    text: TextEncoder
    backend: FakeBackend
    engine: Engine

    def encode(self, prompt: str, length: int | None = None) -> Mapping[str, Array]:
        return self.text.encode(self.engine, prompt, self.text.lengths(prompt) if length is None else (length,))


def encoder(folder: Path, *, remember: int = 2**20, **rules: Any) -> Encoder:
    """An encoder whose conditioning is the ids and the mask it was fed."""
    mask = rules.get("mask_port")
    ports = [Port(name, "int64", ("batch", "tokens")) for name in ("ids", *([mask] if mask else []))]
    text = Network(
        inputs=tuple(ports),
        outputs=tuple(Port(f"heard_{port.name}", "float32", port.shape) for port in ports),
        run=lambda given: {f"heard_{name}": value for name, value in given.items()},
        runs="prompt",
    )
    bundle = fake_bundle(folder, FakeModel(facts=FACTS, networks={"text": text}))
    tokens = Tokens(**{"port": "ids", "file": "tokenizer.json", "length": 6, "pad_id": 0, **rules})
    manifest = Manifest(**{f: getattr(bundle.manifest, f) for f in Manifest.__slots__} | {"tokenizers": (tokens,)})
    backend = FakeBackend({"text": text})
    engine = backend.open(bundle, Demand())["text"]
    return Encoder(TextEncoder(Bundle(folder, manifest), backend, remember=remember), backend, engine)


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
    assert encoder(tmp_path, **rules).encode("a red")["heard_ids"].tolist() == heard


def test_the_mask_covers_the_prompt_and_not_the_filling(tmp_path: Path) -> None:
    text = encoder(tmp_path, mask_port="mask", pad_side="left")
    assert text.encode("a red", 6)["heard_mask"].tolist() == [0, 0, 0, 0, 1, 1]


def test_a_long_prompt_is_cut_and_the_warning_quotes_what_is_lost(tmp_path: Path) -> None:
    text = encoder(tmp_path, length=3)
    with pytest.warns(PromptWarning, match="reads 3 tokens and does not hear 'blue square'"):
        heard = text.encode("a a red blue square", 3)
    assert heard["heard_ids"].tolist() == [A, A, RED]


def test_a_prompt_that_fits_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    text = encoder(tmp_path, length=3)
    text.encode("a red blue", 3)
    assert not recwarn.list


def test_the_empty_prompt_is_a_prompt(tmp_path: Path) -> None:
    text = encoder(tmp_path, pad_to="longest", pad_multiple=2)
    assert text.encode("")["heard_ids"].tolist() == [0, 0]


def test_each_distinct_prompt_is_encoded_once(tmp_path: Path) -> None:
    text = encoder(tmp_path)
    for prompt in ("a red", "a blue", "a red", "a blue"):
        text.encode(prompt, 6)
    assert text.backend.calls == ["text", "text"]


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    text = encoder(tmp_path)
    with pytest.raises(PromptError, match="is not text"):
        text.text.lengths("a \ud800")


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path, FakeModel(facts=FACTS, networks={}))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer .*tokenizer\.json cannot be read"):
        TextEncoder(bundle, FakeBackend({}))


def test_prompts_of_different_lengths_give_the_pictures_they_give_alone(tmp_path: Path) -> None:
    """Where prompts are filled up to the longest, the longest of the batch must not matter."""

    def average(given: Any) -> dict[str, Array]:
        return {"text": given["ids"].astype(np.float32).mean(1, keepdims=True)}

    text = Network(
        inputs=(Port("ids", "int64", ("batch", "tokens")),),
        outputs=(Port("text", "float32", ("batch", 1)),),
        run=average,
        runs="prompt",
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
    text = encoder(tmp_path, length=3)
    with pytest.warns(PromptWarning, match=r"does not hear '(red ){20}\.\.\.'$"):
        text.encode("red " * 1000, 3)


def test_a_chat_template_stands_around_the_prompt(tmp_path: Path) -> None:
    text = encoder(tmp_path, prefix="blue ", suffix=" a")
    assert text.encode("red")["heard_ids"].tolist() == [BLUE, RED, A, 0, 0, 0]


def test_what_is_lost_of_a_prompt_in_a_template_is_quoted_without_the_template(tmp_path: Path) -> None:
    text = encoder(tmp_path, length=3, prefix="blue ", suffix=" a")
    with pytest.warns(PromptWarning, match="does not hear 'circle'"):
        text.encode("red red circle")


def test_what_is_kept_of_prompts_is_bounded_in_bytes_and_the_newest_stays(tmp_path: Path) -> None:
    each = encoder(tmp_path / "one").encode("a")["heard_ids"].nbytes
    text = encoder(tmp_path / "two", remember=3 * each)
    for number in range(20):
        text.encode(f"a {'red ' * (number % 5)}{number}")
        assert text.text.remembered <= 3 * each
    small = encoder(tmp_path / "three", remember=0)
    for _ in range(2):
        small.encode("a")
    assert small.backend.calls == ["text"]


def test_a_warning_leaves_nothing_behind(tmp_path: Path) -> None:
    """`warnings` remembers every message in the module that warned, which a server with many prompts would feel."""
    text = encoder(tmp_path, length=3)
    before = remembered_warnings()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for number in range(50):
            text.encode(f"a red blue {number}")
    assert len(heard) == 50
    assert remembered_warnings() <= before


def remembered_warnings() -> int:
    registries = (vars(module).get("__warningregistry__") for module in list(sys.modules.values()))
    return sum(len(registry) for registry in registries if registry)


def test_a_prompt_of_five_million_characters_is_refused_with_what_fits(tmp_path: Path) -> None:
    text = encoder(tmp_path)
    text.text.lengths("a " * 10_000)
    with pytest.raises(PromptError, match=r"a prompt of 5,000,000 characters came .*; up to 20,000 are read"):
        text.text.lengths("red " * 1_250_000)


@pytest.mark.parametrize("prompt", [5, None, b"a", ["a", None], [5], {"a": 1}.values()])
def test_a_prompt_that_is_not_text_is_refused(tmp_path: Path, prompt: Any) -> None:
    networks = {
        "text": Network(inputs=(), outputs=(), run=dict, runs="prompt"),
        "step": step_network(denoise),
        **SPACES,
    }
    pipeline = Pipeline(fake_bundle(tmp_path, FakeModel(facts=FACTS, networks=networks)), FakeBackend(networks))
    with pytest.raises(PromptError, match=r"a prompt is a text; a \w+ came"):
        pipeline.paint(prompt, scaling_space="latent")


def test_words_of_several_vectors_are_followed_by_their_others(tmp_path: Path) -> None:
    """As diffusers' maybe_convert_prompt writes them out; the first encoding cuts none of them off."""
    bundle = fake_bundle(tmp_path, FakeModel(facts=FACTS, networks={}))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens(["<cat>", "<cat>_1", "<cat>_2", "<dog>", "<dog>_2"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    port = _PortTokenizer(bundle, Tokens(port="ids", file="tokenizer.json", length=9, pad_id=0))
    cat, one, two, dog = (tokenizer.token_to_id(word) for word in ("<cat>", "<cat>_1", "<cat>_2", "<dog>"))
    for prompt, ids in {
        "a <cat> red": [A, cat, one, two, RED],
        "<dog> <cat>": [dog, cat, one, two],
        "<cat> <cat>_1 <cat>_2": [cat, one, two],
        "red": [RED],
    }.items():
        assert port.feed(prompt, 9)["ids"][0].tolist() == [*ids, *[0] * (9 - len(ids))]
