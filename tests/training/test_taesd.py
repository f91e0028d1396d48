"""Files in TAESD's own naming: the same numbers as AutoencoderTiny, and what is refused."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from lssgen.errors import ModelError
from lssgen.models.spaces import SPACES
from lssgen.training import autoencoder as room
from lssgen.training.autoencoder import in_space, load_autoencoder
from lssgen.training.taesd import TaesdAutoencoder, load_taesd

CPU = torch.device("cpu")
KNOWN = Path(__file__).parents[3] / "shared" / "weights"
"""Real autoencoders, where somebody has put them beside the repository."""


def write(folder: Path, *, channels: int = 4, pools: bool = False, suffix: str = ".safetensors") -> Path:
    """Random weights in the naming; returns the encoder's file."""
    torch.manual_seed(0)
    vae = TaesdAutoencoder(channels, pools=pools)
    for part, module in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        path = folder / f"small_{part}{suffix}"
        if suffix == ".pth":
            torch.save(module.state_dict(), path)
        else:
            save_file(module.state_dict(), path)
    return folder / f"small_encoder{suffix}"


def renamed(file: Path, prefix: str, shift: int) -> Mapping[str, torch.Tensor]:
    """Keys as AutoencoderTiny has them, whose decoder does not count the bound of the latents as a layer."""
    halves = ((key.split(".", 1), value) for key, value in load_file(file).items())
    return {f"{prefix}.layers.{int(number) - shift}.{rest}": value for (number, rest), value in halves}


def test_pictures_and_latents_are_those_of_diffusers_class(tmp_path: Path) -> None:
    encoder = write(tmp_path)
    theirs = AutoencoderTiny().eval()
    decoder = encoder.with_name("small_decoder.safetensors")
    theirs.load_state_dict({**renamed(encoder, "encoder", 0), **renamed(decoder, "decoder", 1)})
    ours = load_autoencoder(str(encoder), CPU)
    pictures = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = ours.encode(pictures)
        # float32: theirs scales pictures in another order of operations
        assert torch.allclose(latents.mean, theirs.encode(pictures).latents, atol=1e-5)
        assert torch.allclose(ours.decode(latents.mean), theirs.decode(latents.mean).sample, atol=1e-5)
    assert not latents.std.any()
    assert (ours.channels, ours.cell_px) == (4, 8)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_either_file_may_be_named_in_either_format(suffix: str, half: str, tmp_path: Path) -> None:
    encoder = write(tmp_path, channels=6, pools=True, suffix=suffix)
    vae, identity = load_taesd(encoder.with_name(f"small_{half}{suffix}"))
    assert identity == encoder
    assert vae.encode(torch.zeros(1, 3, 16, 24)).latents.shape == (1, 6, 2, 3)


def test_a_lone_half_is_refused(tmp_path: Path) -> None:
    encoder = write(tmp_path)
    encoder.with_name("small_decoder.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no small_decoder\.safetensors beside .*; TAESD's naming is two files"):
        load_autoencoder(str(encoder), CPU)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    encoder = write(tmp_path)
    encoder.write_bytes(encoder.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"small_encoder\.safetensors cannot be read: .*; fetch it again"):
        load_autoencoder(str(encoder), CPU)


def test_other_keys_are_refused(tmp_path: Path) -> None:
    encoder = write(tmp_path)
    save_file({"encoder.conv_in.weight": torch.zeros(3)}, encoder)
    with pytest.raises(ModelError, match="is not in TAESD's naming, whose keys are numbers of layers"):
        load_autoencoder(str(encoder), CPU)
    save_file({"3.weight": torch.zeros(3), "14.bias": torch.zeros(4)}, encoder)
    with pytest.raises(ModelError, match=r"is not a TAESD small_encoder: .*; fetch both files again"):
        load_autoencoder(str(encoder), CPU)


def test_an_autoencoder_of_which_nobody_knows_whose_latents_it_makes_is_refused(tmp_path: Path) -> None:
    encoder = write(tmp_path)
    unknown = load_autoencoder(str(encoder), CPU)
    with pytest.raises(
        ModelError, match=r"nothing says whose latents .*; give --space with one of sd, sdxl, sd3, flux"
    ):
        in_space(unknown, "auto", str(encoder))
    assert in_space(unknown, "sdxl", str(encoder)).normalisation == {"scaling_factor": 0.13025}
    assert in_space(unknown, "own", str(encoder)).of == ""
    with pytest.raises(ModelError, match=r"latents of 4 channels, not those of FLUX\.1 and Z-Image .*16 channels"):
        in_space(unknown, "flux", str(encoder))


def test_a_known_autoencoder_is_of_its_space_and_of_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = write(tmp_path)
    monkeypatch.setattr(room, "space_of_tiny", lambda sha256: SPACES["sd"])  # noqa: ARG005
    known = load_autoencoder(str(encoder), CPU)
    assert in_space(known, "auto", "x").of == "sd"
    with pytest.raises(ModelError, match=r"makes latents of Stable Diffusion 1\.x and 2\.x, not those of Stable Diff"):
        in_space(known, "sdxl", "x")


def test_a_vae_that_says_how_it_normalises_is_held_to_it(vae: Path) -> None:
    full = load_autoencoder(str(vae), CPU)
    assert in_space(full, "auto", "x").normalisation == {"scaling_factor": 1.5, "shift_factor": 0.1}
    with pytest.raises(ModelError, match=r"x says scaling_factor 1\.5, shift_factor 0\.1 of its latents, but those of"):
        in_space(full, "sd", "x")


def test_every_space_has_small_autoencoders_of_its_own() -> None:
    hashes = [sha256 for space in SPACES.values() for sha256 in space.tiny]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes)
    assert len(set(hashes)) == len(hashes) >= len(SPACES)


REAL = {"taesd": "sd", "taesdxl": "sdxl", "taesd3": "sd3", "taef1": "flux", "taef2": "flux2"}


@pytest.mark.skipif(not KNOWN.is_dir(), reason="the real small autoencoders are not beside the repository")
@pytest.mark.parametrize("name", REAL)
def test_a_real_one_is_of_its_space_and_paints_what_it_has_read(name: str) -> None:
    (encoder,) = KNOWN.glob(f"{name}_encoder.*")
    autoencoder = in_space(load_autoencoder(str(encoder), CPU), "auto", str(encoder))
    assert autoencoder.of == REAL[name]
    assert autoencoder.channels == SPACES[REAL[name]].channels
    ramp = torch.linspace(-1, 1, 64)
    picture = torch.stack([ramp.expand(64, 64), ramp.expand(64, 64).T, torch.zeros(64, 64)])[None]
    with torch.no_grad():
        painted = autoencoder.decode(autoencoder.encode(picture).mean)
    assert (painted - picture).square().mean() < 0.02  # 26 dB; another normalisation or order gives noise
