"""Embeddings: words that text encoders learn, heard as diffusers hears them."""

import contextlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from factory_families import tiny_cogview4, tiny_flux, tiny_sd, tiny_sdxl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from lssgen.errors import LssgenError, ModelError
from lssgen.export.checkpoint import Checkpoint
from lssgen.export.config import Embedding, ExportConfig
from lssgen.export.export import design, export
from lssgen.export.tokenizers import convert_tokenizer
from lssgen.export.weights import Weights
from lssgen.models.nets.recipe import TokenRule

PROMPTS = (
    "A picture of <cat>, by <cat> and a red circle",
    "<Cat><cat> two",
    "the big ring",
    "<dog> <cat> " * 20,
)


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), path)
    return path


def vectors(count: int, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def ids(checkpoint: Checkpoint, name: str, folder: Path, prompt: str, length: int = 77) -> Tensor:
    """What the exported tokenizer makes of a prompt, filled up as the manifest says."""
    rule = TokenRule(component=name, port="ids", length=length)
    taught = checkpoint.taught.get(name.replace("tokenizer", "text_encoder"))
    words = () if taught is None else taught.words
    folder.mkdir(exist_ok=True)
    tokens = convert_tokenizer(
        checkpoint.path(name), checkpoint.class_of(name), rule, folder / f"{name}.json", f"{name}.json", words
    )
    tokenizer = Tokenizer.from_file(str(folder / f"{name}.json"))
    tokenizer.enable_truncation(length)
    found = tokenizer.encode(prompt).ids
    return torch.tensor([found + [tokens.pad_id] * (length - len(found))])


def encoder(checkpoint: Checkpoint, part: str) -> Any:
    module = nn.ModuleDict({part: checkpoint.skeleton(part, torch.float32)})
    checkpoint.weights((part,)).load_into(module)
    return module[part]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("checkpoints") / "sd")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(tmp_path_factory.mktemp("checkpoints") / "sdxl")


@pytest.mark.parametrize("counts", [(1, 1), (3, 1), (2, 4)])
def test_words_of_stable_diffusion_are_heard_as_diffusers_hears_them(
    sd: Path, tmp_path: Path, counts: tuple[int, int]
) -> None:
    """A file of diffusers, whose key is the word, and one of A1111, whose name is."""
    cat = saved(tmp_path / "learned_embeds.safetensors", {"<cat>": vectors(counts[0])})
    dog = saved(tmp_path / "<dog>.safetensors", {"emb_params": vectors(counts[1], seed=1)})
    pipe = StableDiffusionPipeline.from_pretrained(sd)
    pipe.load_textual_inversion(str(cat))
    pipe.load_textual_inversion(str(dog), token="<dog>")
    taught = Checkpoint(sd).with_embeddings([Embedding(cat), Embedding(dog)])
    clip = encoder(taught, "text_encoder")
    for prompt in PROMPTS:
        wanted, _ = pipe.encode_prompt(prompt.replace("<Cat>", "<cat>"), "cpu", 1, False)
        found = clip(ids(taught, "tokenizer", tmp_path / "made", prompt))[0]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_pairs_of_sdxl_are_heard_as_diffusers_hears_them(sdxl: Path, tmp_path: Path) -> None:
    width = int(Checkpoint(sdxl).config("text_encoder_2")["hidden_size"])
    pair = {"clip_l": vectors(2), "clip_g": vectors(2, width, seed=1)}
    file = saved(tmp_path / "anything.safetensors", pair)
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl)
    pipe.load_textual_inversion(pair["clip_l"], token="<cat>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(
        pair["clip_g"], token="<cat>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
    taught = Checkpoint(sdxl).with_embeddings([Embedding(file, ("<cat>",))])
    first, second = encoder(taught, "text_encoder"), encoder(taught, "text_encoder_2")
    for prompt in PROMPTS:
        wanted, _, pooled, _ = pipe.encode_prompt(prompt.replace("<Cat>", "<cat>"), device="cpu")
        left, right = (ids(taught, name, tmp_path / "made", prompt) for name in ("tokenizer", "tokenizer_2"))
        summary = second(right, output_hidden_states=True)
        states = [first(left, output_hidden_states=True).hidden_states[-2], summary.hidden_states[-2]]
        torch.testing.assert_close(torch.cat(states, dim=-1), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(summary[0], pooled, rtol=1e-5, atol=1e-6)


def test_a_word_for_each_vector_is_heard_as_diffusers_hears_it(sd: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "pivotal.safetensors", {"clip_l": vectors(2)})
    pipe = StableDiffusionPipeline.from_pretrained(sd)
    pipe.load_textual_inversion(vectors(2), token=["<s0>", "<s1>"])
    taught = Checkpoint(sd).with_embeddings([Embedding.from_text(f"{file}:<s0>,<s1>")])
    wanted, _ = pipe.encode_prompt("a <s1> in <s0>", "cpu", 1, False)
    found = encoder(taught, "text_encoder")(ids(taught, "tokenizer", tmp_path / "made", "a <s1> in <s0>"))[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_t5_of_flux_learns_nothing_and_its_clip_does(tmp_path: Path) -> None:
    model = tiny_flux(tmp_path / "flux")
    width = int(Checkpoint(model).config("text_encoder")["hidden_size"])
    file = saved(tmp_path / "cat.safetensors", {"<cat>": vectors(2, width)})
    pipe = FluxPipeline.from_pretrained(model)
    pipe.load_textual_inversion(str(file))
    taught = Checkpoint(model).with_embeddings([Embedding(file)])
    assert set(taught.taught) == {"text_encoder"}
    wanted = pipe._get_clip_prompt_embeds("the <cat>")
    found = encoder(taught, "text_encoder")(ids(taught, "tokenizer", tmp_path / "made", "the <cat>")).pooler_output
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_table_is_read_in_pieces_as_it_is_read_whole(sd: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "cat.safetensors", {"<cat>": vectors(3)})
    weights: Weights = Checkpoint(sd).with_embeddings([Embedding(file)]).weights(("text_encoder",))
    (name,) = (key for key in weights if key.endswith("token_embedding.weight"))
    whole = weights.tensor(name)
    assert torch.equal(whole[-3:], vectors(3))
    for elements in (1, 7, 16, 5000):
        assert torch.equal(torch.cat(list(weights.slabs(name, torch.float32, elements))).reshape(whole.shape), whole)


def test_words_are_said_and_change_the_text_graph_alone(
    sd3: Path, config: ExportConfig, written: list[str], tmp_path: Path
) -> None:
    export(config)
    written.clear()
    width = int(Checkpoint(sd3).config("text_encoder")["hidden_size"])
    file = saved(tmp_path / "cat.safetensors", {"<cat>": vectors(2, width)})
    bundle = export(replace(config, embeddings=(Embedding(file),)))
    assert written == ["text"]
    said = "\n".join(bundle.manifest.notes)
    assert "Embedding cat.safetensors: '<cat>' in a prompt takes 2 tokens." in said
    assert "has nothing for text_encoder_2" in said
    tokenizer = Tokenizer.from_file(str(bundle.folder / bundle.manifest.tokenizers[0].file))
    assert tokenizer.encode("<cat>").tokens[1:3] == ["<cat>_0", "<cat>_1"]
    export(
        replace(config, embeddings=(Embedding(saved(tmp_path / "cat.safetensors", {"<cat>": vectors(2, width, 1)})),))
    )
    assert written == ["text", "text"]


@pytest.mark.parametrize(
    ("tensors", "words", "said"),
    [
        ({"<cat>": vectors(1, 17)}, (), "vectors of 17 numbers; .* other ones .text_encoder 16"),
        ({"clip_g": vectors(1)}, (), "for clip_g and its like; this checkpoint has no text_encoder_2"),
        ({"clip_l": vectors(1, 8)}, ("<cat>",), "vectors of 8 numbers in clip_l; the text_encoder .* has 16"),
        ({"clip_l": vectors(1), "t5xxl": vectors(1)}, (), "vectors for T5"),
        ({"clip_l": vectors(1), "other": vectors(1)}, (), "expected words alone, or clip_l and clip_g alone"),
        ({"<a>": vectors(1), "<b>": vectors(1)}, ("c",), "several words of its own"),
        ({"emb_params": vectors(3)}, ("<a>", "<b>"), "3 vectors, and 2 words are asked for"),
        ({"emb_params": vectors(80)}, ("<a>",), "80 vectors in emb_params; a prompt has room for 75"),
        ({"emb_params": torch.full((1, 16), torch.nan)}, ("<a>",), "emb_params holds NaN"),
        ({"emb_params": torch.ones(1, 16, dtype=torch.int32)}, ("<a>",), "is int32 of shape"),
        ({"emb_params": torch.ones(0, 16)}, ("<a>",), "is not an embedding"),
        ({"x.lora_A.weight": torch.ones(2, 2, 2)}, (), "A LoRA goes with --lora"),
        ({}, (), "is empty"),
        ({"emb_params": vectors(1)}, ("a",), "knows the word 'a' already"),
        ({"emb_params": vectors(1)}, (" ",), "would be called ' ' in a prompt"),
        ({"emb_params": vectors(1)}, ("a\nb",), "would be called"),
        ({"emb_params": vectors(1)}, ("x" * 101,), "1 to 100 characters"),
        ({"<cat>": vectors(2), "<cat>_1": vectors(1)}, (), "would learn '<cat>_1' twice"),
        ({"<ca": vectors(2), "<cat>": vectors(1)}, (), "could not tell '<ca' from the one in '<cat>'"),
    ],
)
def test_embedding_that_does_not_fit_is_refused(
    sd: Path, tmp_path: Path, tensors: dict[str, Tensor], words: tuple[str, ...], said: str
) -> None:
    file = saved(tmp_path / "file.safetensors", tensors)
    with pytest.raises(ModelError, match=said):
        Checkpoint(sd).with_embeddings([Embedding(file, words)])


def test_same_word_twice_is_refused(sd: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "file.safetensors", {"emb_params": vectors(1)})
    with pytest.raises(ModelError, match=r"would learn '<Cat>' twice; call it otherwise, with --embedding FILE:WORD"):
        Checkpoint(sd).with_embeddings([Embedding(file, ("<cat>",)), Embedding(file, ("<Cat>",))])


def test_encoder_without_words_is_refused(tmp_path: Path) -> None:
    model = tiny_cogview4(tmp_path / "cogview4")
    file = saved(tmp_path / "file.safetensors", {"<cat>": vectors(1)})
    with pytest.raises(ModelError, match="none that learns words"):
        Checkpoint(model).with_embeddings([Embedding(file)])


WHOLE = save({"\u00fc<cat>": vectors(2)})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(WHOLE) - 1), put=st.binary(min_size=1, max_size=8))
def test_damaged_embedding_is_refused_or_numbers(sd: Path, tmp_path: Path, at: int, put: bytes) -> None:
    file = tmp_path / "cat.safetensors"
    file.write_bytes(WHOLE[:at] + put + WHOLE[at + len(put) :])
    with contextlib.suppress(LssgenError):
        taught = Checkpoint(sd).with_embeddings([Embedding(file)])
        assert taught.deltas_sha256(("text_encoder",))
        assert all(word.vectors.isfinite().all() for word in taught.taught["text_encoder"].words)


def test_word_that_is_no_text_is_refused(sd: Path, tmp_path: Path) -> None:
    text = rb'{"\ud800":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}'
    file = tmp_path / "cat.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(ModelError, match="surrogate"):
        Checkpoint(sd).with_embeddings([Embedding(file)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "there is no embedding"),
        (lambda path: path.mkdir(), "has 0 safetensors files"),
        (lambda path: path.with_suffix(".pt").touch() or path.symlink_to(path.with_suffix(".pt")), "cannot be read as"),
        (lambda path: path.write_bytes(b"\xff" * 40), "cannot be read as an embedding"),
    ],
)
def test_place_without_an_embedding_is_refused(
    sd: Path, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "cat.safetensors")
    with pytest.raises(ModelError, match=said):
        Checkpoint(sd).with_embeddings([Embedding(tmp_path / "cat.safetensors")])


def test_pickled_embedding_is_refused(sd: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.pt").touch()
    with pytest.raises(ModelError, match="is pickled"):
        Checkpoint(sd).with_embeddings([Embedding(tmp_path / "cat.pt")])


def test_word_that_is_part_of_others_is_mentioned(sd: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "zebrule.safetensors", {"emb_params": vectors(1)})
    notes = Checkpoint(sd).with_embeddings([Embedding(file)]).notes
    assert any("'zebrule' is heard inside longer words too" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("cat.safetensors", "cat.safetensors", ()),
        ("cat.safetensors:<cat>", "cat.safetensors", ("<cat>",)),
        ("owner/name@v1:<s0>,<s1>", "owner/name@v1", ("<s0>", "<s1>")),
    ],
)
def test_embedding_is_read_from_the_command_line(text: str, path: str, words: tuple[str, ...]) -> None:
    assert Embedding.from_text(text) == Embedding(Path(path), words)


def test_file_whose_name_has_a_colon_is_found(tmp_path: Path) -> None:
    (tmp_path / "a:b.safetensors").touch()
    assert Embedding.from_text(f"{tmp_path}/a:b.safetensors").words == ()


def test_embedding_for_another_model_is_told_before_anything_is_made(config: ExportConfig, tmp_path: Path) -> None:
    file = saved(tmp_path / "file.safetensors", {"<cat>": vectors(1, 17)})
    with pytest.raises(ModelError, match="vectors of 17 numbers"):
        design(replace(config, embeddings=(Embedding(file),)))
    assert not config.output.exists()
