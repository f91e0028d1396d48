"""Prompts against the programs that users know: clip skip, embeddings of several vectors, weights of words.

The text graphs are the torch modules that exports trace, so that nothing needs to be exported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import factory
import factory_chroma
import factory_families as families
import factory_flux2
import factory_qwen
import factory_zimage
import numpy as np
import pytest
import torch
import transformers
from exported import ONE_PASS
from loop import relative
from tokenizers import Tokenizer
from toy_bundle import FACTS

from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand
from lssgen.errors import ExportError
from lssgen.export.checkpoint import Parts
from lssgen.export.config import ExportConfig
from lssgen.export.export import design
from lssgen.export.tokenizers import convert_tokenizer
from lssgen.manifest import Tokens
from lssgen.models.configs import read_json
from lssgen.ports import Array
from lssgen.runtime.text import Lengths, TextEncoder
from lssgen.runtime.weighting import Weighting
from lssgen.testing import FakeBackend, FakeModel, Network, fake_bundle

PROMPT = "the red circle"

FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "sd": families.tiny_sd,
    "sdxl": families.tiny_sdxl,
    "sd3": factory.tiny_sd3,
    "flux": families.tiny_flux,
    "flux2": factory_flux2.tiny_klein,
    "cogview4": families.tiny_cogview4,
    "zimage": factory_zimage.tiny_zimage,
    "qwen": factory_qwen.tiny_qwen,
    "chroma": factory_chroma.tiny_chroma,
}


class Whole(Parts):
    """Parts with their weights."""

    def module(self, name: str) -> Any:
        return getattr(transformers, self.checkpoint.class_of(name)).from_pretrained(self.checkpoint.path(name)).eval()


@dataclass(frozen=True)
class Text:
    """A checkpoint's text graph, and the encoder around it."""

    bundle: Bundle
    encoder: TextEncoder
    engine: Any

    @classmethod
    def of(cls, folder: Path, root: Path, **wishes: Any) -> "Text":
        outline = design(ExportConfig(model=str(folder), output=root, resolutions=((32, 32),), **wishes))
        checkpoint = outline.model.checkpoint
        (recipe,) = (recipe for recipe in outline.recipes if recipe.name == "text")
        module = recipe.build(Whole(checkpoint, torch.float32))

        @torch.no_grad()
        def run(given: Mapping[str, Array]) -> dict[str, Array]:
            came = module(*(torch.from_numpy(given[port.name].copy()) for port in recipe.inputs))
            said = came if isinstance(came, tuple) else (came,)
            return {port.name: value.numpy() for port, value in zip(recipe.outputs, said, strict=True)}

        network = Network(inputs=recipe.inputs, outputs=recipe.outputs, run=run, runs="prompt")
        bundle = fake_bundle(root, FakeModel(facts=FACTS, networks={"text": network}))
        tokens = tuple(
            convert_tokenizer(
                checkpoint.path(rule.component), checkpoint.class_of(rule.component), rule, root / name, name
            )
            for rule in outline.blueprint.tokens
            for name in [f"{rule.component}.json"]
        )
        manifest = replace(bundle.manifest, tokenizers=tokens, token_axes=outline.blueprint.token_axes)
        bundle, backend = Bundle(root, manifest), FakeBackend({"text": network})
        return cls(bundle, TextEncoder(bundle, backend), backend.open(bundle, Demand(graphs=("text",)))["text"])

    def rows(self, prompt: str, weighting: Weighting = "none", lengths: Lengths = ()) -> Array:
        """(rows, columns) of the prompt."""
        needed = lengths or self.encoder.lengths(prompt, weighting)
        return self.encoder.encode(self.engine, prompt, needed, weighting)["prompt_embeds"]


def deeper(folder: Path) -> Path:
    """The checkpoint with text encoders of four layers, so that there are some to leave out."""
    torch.manual_seed(1)
    for part in folder.glob("text_encoder*"):
        config = transformers.CLIPTextConfig.from_pretrained(part)
        config.num_hidden_layers = 4
        getattr(transformers, config.architectures[0])(config).save_pretrained(part)
    return folder


def pipe_of(folder: Path) -> Any:
    return getattr(diffusers, read_json(folder / "model_index.json")["_class_name"]).from_pretrained(folder)


@pytest.mark.parametrize("skip", [1, 2])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_clip_skip_is_that_of_diffusers(tmp_path: Path, name: str, skip: int) -> None:
    folder = deeper(FAMILIES[name](tmp_path / "checkpoint"))
    came = torch.from_numpy(Text.of(folder, tmp_path / "bundle", clip_skip=skip).rows(PROMPT))
    given: dict[str, Any] = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    pipe = pipe_of(folder)
    # diffusers 0.42 looks for the last norm within a shell that transformers 5 has taken off.
    pipe.text_encoder.__dict__.setdefault("text_model", pipe.text_encoder)
    with torch.no_grad():
        wanted, plain = (pipe.encode_prompt(PROMPT, clip_skip=layers, **given)[0][0] for layers in (skip, None))
    assert relative(came, wanted) < ONE_PASS
    assert relative(plain, wanted) > 0.01


@pytest.mark.parametrize(
    ("name", "skip", "words"),
    [
        ("sd", 4, "--clip-skip 4 leaves nothing of a text encoder with 4 layers; give 3 at most"),
        ("sdxl", 3, "--clip-skip 3 leaves nothing of a text encoder with 4 layers; give 2 at most"),
        ("sd3", 1, "--clip-skip is for SD 1.x, 2.x and SDXL; Stable Diffusion 3 is exported without it"),
        ("flux", 1, "--clip-skip is for SD 1.x, 2.x and SDXL; FLUX.1 is exported without it"),
        ("flux2", 1, "--clip-skip is for SD 1.x, 2.x and SDXL; FLUX.2 is exported without it"),
        ("cogview4", 1, "--clip-skip is for SD 1.x, 2.x and SDXL; CogView4 is exported without it"),
        ("zimage", 1, "--clip-skip is for SD 1.x, 2.x and SDXL; Z-Image is exported without it"),
        ("qwen", 1, "--clip-skip is for SD 1.x, 2.x and SDXL; Qwen-Image is exported without it"),
        ("chroma", 1, "--clip-skip is for SD 1.x, 2.x and SDXL; Chroma is exported without it"),
    ],
)
def test_a_clip_skip_that_cannot_be_is_refused(tmp_path: Path, name: str, skip: int, words: str) -> None:
    folder = FAMILIES[name](tmp_path / "checkpoint")
    if name in ("sd", "sdxl"):
        deeper(folder)
    with pytest.raises(ExportError) as told:
        design(ExportConfig(model=str(folder), output=tmp_path, resolutions=((32, 32),), clip_skip=skip))
    assert words in str(told.value)


def test_a_text_encoder_that_wants_a_mask_is_refused(tmp_path: Path) -> None:
    """diffusers would hide the filling from it; every published encoder reads it."""
    folder = families.tiny_sd(tmp_path / "checkpoint")
    config = dict(read_json(folder / "text_encoder/config.json"))
    factory.write_json(folder / "text_encoder/config.json", config | {"use_attention_mask": True})
    with pytest.raises(ExportError, match="asks for an attention mask"):
        design(ExportConfig(model=str(folder), output=tmp_path, resolutions=((32, 32),)))


def test_an_embedding_of_several_vectors_that_a_checkpoint_has_is_read_as_by_diffusers(tmp_path: Path) -> None:
    folder = families.tiny_sd(tmp_path / "checkpoint")
    pipe = pipe_of(folder)
    pipe.tokenizer.add_tokens(["<cat>", "<cat>_1", "<cat>_2", "<dog>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    pipe.text_encoder.save_pretrained(folder / "text_encoder")
    text = Text.of(folder, tmp_path / "bundle")
    for prompt in ("a <cat>", "<cat> and a <dog>, <cat>.", "<dog>", "a cat"):
        with torch.no_grad():
            wanted = pipe.encode_prompt(prompt, "cpu", 1, False)[0][0]
        assert relative(torch.from_numpy(text.rows(prompt)), wanted) < ONE_PASS
    rows, plain = text.rows("a (<cat>:2) ring", "comfyui"), text.rows("a <cat> ring")
    changed = np.flatnonzero((rows != plain).any(1))
    assert changed.tolist() == [2, 3, 4]  # behind the start and "a": the word and its two others


@pytest.fixture(scope="module", params=FAMILIES)
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Text:
    root = tmp_path_factory.mktemp(request.param)
    more = {"max_sequence_length": 24} if request.param == "sd3" else {}
    return Text.of(FAMILIES[request.param](root / "checkpoint"), root / "bundle", **more)


WEIGHTS: Mapping[Weighting, tuple[str, Mapping[str, float]]] = {
    "a1111": ("the (red:1.5) [circle]", {"the": 1.0, "red": 1.5, "circle": 1 / 1.1}),
    "comfyui": ("the (red:1.5) (circle:0.9)", {"the": 1.0, "red": 1.5, "circle": 0.9}),
}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_weights_are_on_the_rows_of_their_words(text: Text, weighting: Weighting) -> None:
    """Against the formulas by hand, encoder by encoder."""
    if weighting == "comfyui" and text.bundle.manifest.tokenizers[0].pad_to == "longest":
        pytest.skip("refused: the empty prompt has fewer rows")
    marked, weights = WEIGHTS[weighting]
    lengths = text.encoder.lengths(PROMPT)
    plain, empty, came = text.rows(PROMPT), text.rows("", lengths=lengths), text.rows(marked, weighting)
    wanted, seen = plain.copy(), np.zeros(plain.shape, bool)
    for rules, length in zip(text.bundle.manifest.tokenizers, lengths, strict=True):
        if rules.heard is None:
            continue
        each = _each_token(text.bundle.path(rules.file), length, rules, weights)[rules.drop :, None]
        first, last = rules.heard.columns or (0, plain.shape[1])
        block = (slice(rules.heard.row, rules.heard.row + len(each)), slice(first, last))
        if weighting == "comfyui":
            wanted[block] = empty[block] + each * (plain[block] - empty[block])
        else:
            wanted[block] = plain[block] * each
            wanted[block] *= plain[block].mean(dtype=np.float64) / wanted[block].mean(dtype=np.float64)
        assert not seen[block].any()
        seen[block] = True
    assert np.array_equal(came[~seen], plain[~seen])
    assert came == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert not np.allclose(came, plain)


def test_every_row_of_a_prompt_belongs_to_a_tokenizer(text: Text) -> None:
    """Filling between CLIP's columns and T5's width apart, which is zero."""
    rows = text.rows(PROMPT)
    for rules, length in zip(text.bundle.manifest.tokenizers, text.encoder.lengths(PROMPT), strict=True):
        if rules.heard is not None:
            first, last = rules.heard.columns or (0, rows.shape[1])
            rows[rules.heard.row : rules.heard.row + length - rules.drop, first:last] = 0
    assert not rows.any()


def _each_token(file: Path, length: int, rules: Tokens, weights: Mapping[str, float]) -> Array:
    """(length,) weights, with the words of the tokens looked up one by one; those of a chat template count once."""
    found = Tokenizer.from_file(str(file)).encode(f"{rules.prefix}{PROMPT}{rules.suffix}")
    before = len(rules.prefix)
    own: list[float] = []
    for (begin, end), special in zip(found.offsets, found.special_tokens_mask, strict=True):
        inside = range(max(0, begin - before), min(len(PROMPT), end - before))
        at = next((place for place in inside if PROMPT[place] != " "), None)
        word = None if special or at is None else PROMPT[: at + 1].split()[-1]
        own.append(1.0 if word is None else next(weight for name, weight in weights.items() if name.startswith(word)))
    filling = [1.0] * (length - len(own))
    return np.array([*filling, *own] if rules.pad_side == "left" else [*own, *filling])
