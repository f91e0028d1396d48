"""Another autoencoder in the place of the checkpoint's own, in every form in which people have them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from factory import liven, tiny_upsampler, tiny_vae, write_json
from hub_fakes import says_it_has
from original_layout import part, vae
from safetensors.torch import load_file, save_file

from lssgen import paths
from lssgen.bundle import read_bundle, sha256_of
from lssgen.errors import ExportError, LssgenError, ModelError, UnknownModelError
from lssgen.export import hub
from lssgen.export.config import ExportConfig
from lssgen.export.export import design, export
from lssgen.export.hub import find_model
from lssgen.export.vae import with_vae
from lssgen.runtime import load

WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = {
    "encoder_block_out_channels": (64,) * 3,
    "decoder_block_out_channels": (64,) * 3,
    "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (1, 1, 1),
}
"""Four pixels a cell, as the tiny checkpoints have."""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))


def tiny(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(3)
    model = AutoencoderTiny(**{"latent_channels": 4, **TINY, **settings})
    liven(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """An AutoencoderKL of the same kind as the checkpoint's, with other weights."""
    torch.manual_seed(9)
    module = tiny_vae(4)
    liven(module)
    module.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def used(sd3: Path, name: str) -> dict[str, torch.Tensor]:
    checkpoint = with_vae(find_model(str(sd3)), name).checkpoint
    weights = checkpoint.weights(("vae",))
    return {key.removeprefix("vae."): weights.tensor(key) for key in weights}


def same(came: dict[str, torch.Tensor], folder: Path) -> bool:
    wanted = load_file(folder / WEIGHTS)
    return set(came) == set(wanted) and all(
        torch.equal(value.flatten(), wanted[key].flatten()) for key, value in came.items()
    )


def test_folder_of_a_vae_and_folder_with_one_are_taken(sd3: Path, other: Path, tmp_path: Path) -> None:
    assert same(used(sd3, str(other)), other)
    shutil.copytree(other, tmp_path / "pipeline" / "vae")
    assert same(used(sd3, str(tmp_path / "pipeline")), other)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_file_in_the_original_names_is_taken(sd3: Path, other: Path, tmp_path: Path, prefix: str) -> None:
    tensors = vae(part(other.parent, other.name), prefix=prefix)
    more = {"model.diffusion_model.x": torch.ones(1)} if prefix else {}
    save_file({key: value.contiguous() for key, value in {**tensors, **more}.items()}, tmp_path / "ae.safetensors")
    assert same(used(sd3, str(tmp_path / "ae.safetensors")), other)


def test_file_in_the_names_of_diffusers_is_taken(sd3: Path, other: Path) -> None:
    assert same(used(sd3, str(other / WEIGHTS)), other)


def halves(folder: Path, into: Path, name: str = "taesd") -> Path:
    """As its author publishes a tiny autoencoder: two files, layers by number, a clamp in front of the decoder."""
    files: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for key, value in load_file(folder / WEIGHTS).items():
        half, _, number, rest = key.split(".", 3)
        files[half][f"{int(number) + (half == 'decoder')}.{rest}"] = value
    for half, tensors in files.items():
        save_file(tensors, into / f"{name}_{half}.safetensors")
    return into / f"{name}_decoder.safetensors"


def published(folder: Path) -> Path:
    """A tiny autoencoder as large as the published ones: files of these say nothing about their size."""
    return tiny(folder, **dict(zip(TINY, ((64,) * 4, (64,) * 4, (1, 3, 3, 3), (3, 3, 3, 1)), strict=True)))


def test_two_halves_become_one(eight: Path, tmp_path: Path) -> None:
    folder = published(tmp_path / "tiny")
    decoder = halves(folder, tmp_path)
    assert same(used(eight, str(decoder)), folder)
    assert same(used(eight, str(tmp_path / "taesd_encoder.safetensors")), folder)
    assert len(list(paths.checkpoints().glob("taesd*"))) == 1


def test_half_without_its_other_half_is_refused(eight: Path, tmp_path: Path) -> None:
    decoder = halves(published(tmp_path / "tiny"), tmp_path)
    (tmp_path / "taesd_encoder.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is not a VAE of this model; give an AutoencoderKL, or both halves"):
        used(eight, str(decoder))


@pytest.fixture(scope="module")
def eight(sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a VAE of four levels, eight pixels a cell."""
    folder = shutil.copytree(sd3, tmp_path_factory.mktemp("eight") / "sd3")
    shutil.rmtree(folder / "vae")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    module = tiny_vae(4, block_out_channels=(8,) * 4, **kinds)
    liven(module)
    module.save_pretrained(folder / "vae")
    return folder


SHARED = Path(__file__).parents[3] / "shared" / "weights"


@pytest.mark.skipif(not (SHARED / "taesd_decoder.safetensors").is_file(), reason="the published weights are not here")
def test_published_tiny_autoencoder_paints_what_it_reads(eight: Path) -> None:
    checkpoint = with_vae(find_model(str(eight)), str(SHARED / "taesd_decoder.safetensors")).checkpoint
    module: Any = AutoencoderTiny.from_pretrained(checkpoint.path("vae"))
    ramp = torch.linspace(-0.8, 0.8, 64).expand(1, 3, 64, 64)
    with torch.no_grad():
        painted = module.decode(module.encode(ramp).latents).sample
    assert (painted - ramp).square().mean() < 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latent_channels": 16}, r"has latents of 16 channels, those of sd3 have 4"),
        ({"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "encoder_block_out_channels": (64, 64),
          "decoder_block_out_channels": (64, 64)}, r"is 2 px wide, one of sd3 is 4 px"),
    ],
)  # fmt: skip
def test_vae_of_other_latents_is_refused(sd3: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        used(sd3, str(tiny(tmp_path / "tiny", **settings)))


def test_other_normalisation_is_a_warning(sd3: Path, tmp_path: Path) -> None:
    module = tiny_vae(4, scaling_factor=0.18215)
    module.save_pretrained(tmp_path / "other")
    (_, warning) = with_vae(find_model(str(sd3)), str(tmp_path / "other")).notes
    assert warning.startswith("WARNING")
    assert "scaling_factor 0.18215" in warning
    assert "scaling_factor 1.5305" in warning


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nothing here", UnknownModelError, "there is no VAE nothing here"),
        ("x.safetensors", UnknownModelError, r"there is no file x.safetensors"),
        ("x.pt", ModelError, "there is no file|is pickled"),
        (".", UnknownModelError, r"has no config\.json, and no vae/config\.json"),
    ],
)
def test_what_is_no_vae_is_refused(
    sd3: Path, name: str, error: type[LssgenError], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        used(sd3, name)


@pytest.mark.usefixtures("written")
def test_checkpoint_whose_own_folder_holds_a_tiny_autoencoder_is_exported(
    config: ExportConfig, sd3: Path, tmp_path: Path
) -> None:
    """The class in the part's own config counts, whatever model_index.json says of the one that was there before."""
    copy = shutil.copytree(sd3, tmp_path / "copy")
    shutil.rmtree(copy / "vae")
    tiny(copy / "vae")
    index = json.loads((copy / "model_index.json").read_text())
    assert index["vae"][1] == "AutoencoderKL"
    shutil.rmtree(copy / "upsampler")
    manifest = export(replace(config, model=str(copy))).manifest
    assert [port.name for port in manifest.graphs["encode"].inputs] == ["picture"]
    assert "posterior_noise" not in manifest.graphs["transition_pixel"].feeds
    assert read_bundle(config.output).manifest == manifest


@pytest.mark.slow
def test_bundle_with_a_tiny_autoencoder_paints_and_starts_from_pictures(sd3: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        model=str(sd3), output=tmp_path / "bundle", resolutions=((64, 64), (128, 128)),
        vae=str(tiny(tmp_path / "tiny")), max_sequence_length=24, threads=1,
    )  # fmt: skip
    export(config)
    with load(config.output, threads=1) as pipeline:
        picture = pipeline("a", num_inference_steps=2, scaling_space="pixel").pictures[0].image
        again = pipeline("a", num_inference_steps=4, init_image=picture, scaling_space="pixel").pictures[0].image
    assert picture.size == again.size == (128, 128)


def test_upsampler_of_the_own_vae_stays_the_right_one(config: ExportConfig, sd3: Path, tmp_path: Path) -> None:
    """A tiny autoencoder has the model's latents as they are; the upsampler works among these."""
    copy = shutil.copytree(sd3, tmp_path / "copy")
    shutil.rmtree(copy / "upsampler")
    installed = paths.upsamplers() / sha256_of(copy / "vae" / WEIGHTS)[:16]
    tiny_upsampler(installed, licence="MIT", scaling_factor=1.5305, shift_factor=0.0609)
    outline = design(replace(config, model=str(copy), vae=str(tiny(tmp_path / "tiny"))))
    assert outline.upsampler is not None
    assert outline.upsampler.folder == installed
    assert any("AutoencoderKL" not in note and "tiny" in note for note in outline.notes)


def test_own_vae_may_be_without_weights_where_another_stands_in(
    config: ExportConfig, sd3: Path, other: Path, tmp_path: Path, written: list[str]
) -> None:
    copy = shutil.copytree(sd3, tmp_path / "copy")
    (copy / "vae" / WEIGHTS).unlink()
    manifest = export(replace(config, model=str(copy), vae=str(other))).manifest
    assert manifest.source.sha256[f"vae/{WEIGHTS}"] == sha256_of(other / WEIGHTS)
    assert f"The VAE is {other}, in the place of the checkpoint's own." in manifest.notes
    assert "decode" in written


def test_on_the_hub_only_the_vae_that_is_used_is_fetched(
    sd3: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: dict[str, list[str]] = {}
    top = tmp_path / ("ab" * 20)
    shutil.copytree(other, top)
    folders = {"somebody/sd3": sd3, "madebyollin/fix": top}

    def snapshot(repository: str, *, allow_patterns: list[str], **_: object) -> str:
        fetched[repository] = allow_patterns
        return str(folders[repository])

    def names(repository: str) -> list[str]:
        found = [path.relative_to(folders[repository]).as_posix() for path in folders[repository].rglob("*.*")]
        return [*found, "sdxl_vae.safetensors", "diffusion_pytorch_model.fp16.safetensors"]

    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd3 / "model_index.json"))
    says_it_has(monkeypatch, names)
    monkeypatch.setattr(hub.hub, "snapshot_download", snapshot)
    model = with_vae(find_model("somebody/sd3", lean=("vae",)), "madebyollin/fix")
    assert "vae/config.json" in fetched["somebody/sd3"]
    assert f"vae/{WEIGHTS}" not in fetched["somebody/sd3"]
    assert set(fetched["madebyollin/fix"]) == {"config.json", WEIGHTS}
    assert model.notes == (f"The VAE is madebyollin/fix at {'ab' * 20}, in the place of the checkpoint's own.",)


@pytest.mark.parametrize("name", ["AutoencoderKLTemporalDecoder", "ConsistencyDecoderVAE", "AsymmetricAutoencoderKL"])
def test_autoencoder_of_another_class_is_refused_before_anything_is_written(
    config: ExportConfig, sd3: Path, tmp_path: Path, written: list[str], name: str
) -> None:
    copy = shutil.copytree(sd3, tmp_path / "copy")
    file = copy / "vae" / "config.json"
    write_json(file, {**json.loads(file.read_text()), "_class_name": name})
    with pytest.raises(ModelError, match=rf"vae of .* is a {name}; .*AutoencoderKL or AutoencoderTiny.*--vae"):
        export(replace(config, model=str(copy)))
    assert not config.output.exists()
    assert written == []


def test_file_that_cannot_be_converted_for_want_of_room_says_so(
    sd3: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lssgen.export.vae.save_file", full)
    with pytest.raises(ExportError, match=r"cannot be converted to .*No space left.*LSSGEN_HOME"):
        used(sd3, str(other / WEIGHTS))
