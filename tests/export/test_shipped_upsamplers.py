"""This package's own upsamplers: what each says of itself, and which models find one without being told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factory import tiny_sd3, tiny_upsampler, tiny_vae
from factory_chroma import tiny_chroma
from factory_families import PLAYGROUND, tiny_cogview4, tiny_flux, tiny_sd, tiny_sdxl
from factory_flux2 import tiny_klein, tiny_vae_flux2
from factory_zimage import tiny_zimage
from safetensors import safe_open

from lssgen import paths
from lssgen.bundle import sha256_of
from lssgen.export.config import ExportConfig
from lssgen.export.export import Design, design
from lssgen.export.upsampler import spaces_of
from lssgen.models.aliases import ALIASES, Alias
from lssgen.models.families import FAMILIES, Family
from lssgen.models.nets.installed import SHIPPED, shipped_upsampler
from lssgen.models.nets.upsamplers import load_upsampler
from lssgen.models.nets.vae import normalisation, same_latents
from lssgen.models.spaces import SPACES

WEIGHTS = "diffusion_pytorch_model.safetensors"
PUBLISHED = [alias for alias in ALIASES.values() if not alias.local]
NONE = {
    "playground": "its latents are normalised otherwise",
    **dict.fromkeys(
        ("cogview4", "qwen-image", "qwen-image-2512", "qwen-image-2.1"), "no small autoencoder of its space is known"
    ),
}
"""Published checkpoints for which none is shipped, and why."""

SPACE_OF = {"zimage": "flux", "chroma": "flux"}
"""Spaces of families that paint in another family's."""

spaces = pytest.mark.parametrize("space", SPACES)


def card(space: str) -> dict[str, Any]:
    return json.loads((shipped_upsampler(space) / "lssgen.json").read_text())


@spaces
def test_one_is_shipped_for_every_space_and_fits_it(space: str) -> None:
    load_upsampler(shipped_upsampler(space)).check_fits(SPACES[space].channels, model=space)


def test_nothing_else_is_shipped() -> None:
    assert {folder.name for folder in SHIPPED.iterdir()} == set(SPACES)


@spaces
def test_weights_are_half_precision_and_about_a_megabyte(space: str) -> None:
    file = shipped_upsampler(space) / WEIGHTS
    assert file.stat().st_size < 1_100_000
    with safe_open(file, "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


@spaces
def test_its_card_says_space_licence_data_recipe_numbers_and_limits(space: str) -> None:
    said = card(space)
    assert said["space"] == space
    assert said["licence"] == "Apache-2.0"
    assert same_latents(normalisation(said), SPACES[space].normalisation)
    assert said["vae_sha256"] in SPACES[space].tiny
    assert "distilled" in said["origin"]
    assert "lssgen-train-upsampler" in said["origin"]
    assert said["metrics"]["psnr_db"] > 20
    text = (shipped_upsampler(space) / "README.md").read_text()
    for heading in ("## Data", "## Licence", "## Recipe", "## Numbers", "## Limits"):
        assert heading in text


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_family_names_spaces_that_are_known(family: Family) -> None:
    assert set(family.latent_spaces) <= set(SPACES)


@pytest.mark.parametrize("alias", PUBLISHED, ids=[alias.name for alias in PUBLISHED])
def test_every_published_checkpoint_but_those_named_here_has_one(alias: Alias) -> None:
    vae = alias.configs()["vae"]
    fitting = [
        space.name
        for space in spaces_of(alias.record, vae, alias.facts().channels)
        if same_latents(space.normalisation, vae)
    ]
    assert fitting == ([] if alias.name in NONE else [SPACE_OF.get(alias.family, alias.family)])


EIGHT_PX: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def in_the_real_layout(family: str, folder: Path) -> Path:
    """A random checkpoint whose latents have the channels, the cells and the normalisation of the published ones."""
    makers = {
        "sd": tiny_sd,
        "sdxl": tiny_sdxl,
        "sd3": lambda to: tiny_sd3(to, channels=16, t5=False),
        "flux": lambda to: tiny_flux(to, in_channels=64),
        "flux2": lambda to: tiny_klein(to, in_channels=128),
        "cogview4": lambda to: tiny_cogview4(to, in_channels=16, out_channels=16),
        "playground": lambda to: tiny_sdxl(to, vae=PLAYGROUND),
        "zimage": lambda to: tiny_zimage(to, channels=16),
        "chroma": lambda to: tiny_chroma(to, channels=16),
    }
    makers[family](folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    if family == "flux2":
        tiny_vae_flux2(32, **EIGHT_PX).save_pretrained(folder / "vae")
        return folder
    shutil.rmtree(folder / "vae")
    channels = 4 if family in ("sd", "sdxl", "playground") else 16
    tiny_vae(channels, **{"shift_factor": None, **normalisation(config), **EIGHT_PX}).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    return tmp_path


def designed(checkpoint: Path, **choices: Any) -> Design:
    order = ExportConfig(
        model=str(checkpoint), output=checkpoint.with_name("bundle"), resolutions=((64, 64), (128, 128))
    )
    return design(replace(order, **choices))


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "flux2", "zimage", "chroma"])
def test_an_export_finds_the_one_of_its_space_and_says_how_it_was_made(family: str, home: Path) -> None:
    outline = designed(in_the_real_layout(family, home / family))
    assert outline.upsampler is not None
    space = SPACE_OF.get(family, family)
    assert outline.upsampler.folder == shipped_upsampler(space)
    assert outline.upsampler.record.licence == "Apache-2.0"
    assert outline.facts.defaults.scaling_space == "resnet"
    assert "transition_resnet" in [recipe.name for recipe in outline.recipes]
    (note,) = [note for note in outline.notes if "Latent upsampler" in note]
    assert card(space)["origin"] in note


@pytest.mark.parametrize("family", ["cogview4", "playground"])
def test_a_model_of_another_space_finds_none(family: str, home: Path) -> None:
    outline = designed(in_the_real_layout(family, home / family))
    assert outline.upsampler is None
    (warning,) = [note for note in outline.notes if note.startswith("WARNING")]
    assert ("--convert-latents" in warning) == (family == "playground")


def test_latents_that_are_normalised_otherwise_are_converted_on_request(home: Path) -> None:
    outline = designed(in_the_real_layout("playground", home / "playground"), convert_latents=True)
    assert outline.upsampler is not None
    assert outline.upsampler.folder == shipped_upsampler("sdxl")
    assert outline.upsampler.record.converted_to == SPACES["sdxl"].normalisation


def test_latents_that_are_normalised_in_squares_are_converted_without_being_asked_to(home: Path) -> None:
    """FLUX.2's network normalises what its VAE makes; upsamplers are for what VAEs make."""
    outline = designed(in_the_real_layout("flux2", home / "flux2"))
    assert outline.upsampler is not None
    assert outline.upsampler.record.converted_to == {}
    (note,) = [note for note in outline.notes if "Latent upsampler" in note]
    assert "those of this model are converted for it, and back" in note


def test_cells_of_another_size_are_another_space(home: Path) -> None:
    assert designed(tiny_sd(home / "sd")).upsampler is None  # four pixels a cell


def test_what_is_nearer_to_the_model_comes_first(home: Path) -> None:
    checkpoint = in_the_real_layout("sd", home / "sd")
    found: list[Path] = []

    def look(**choices: Any) -> None:
        outline = designed(checkpoint, **choices)
        assert outline.upsampler is not None
        found.append(outline.upsampler.folder)

    said = {"scaling_factor": 0.18215, "licence": "MIT"}
    look()
    installed = tiny_upsampler(paths.upsamplers() / sha256_of(checkpoint / "vae" / WEIGHTS)[:16], **said)
    look()
    own = tiny_upsampler(checkpoint / "upsampler", **said)
    look()
    given = tiny_upsampler(home / "given", **said)
    look(upsampler=given)
    assert found == [shipped_upsampler("sd"), installed, own, given]
