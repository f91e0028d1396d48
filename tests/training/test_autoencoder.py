import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub.errors import LocalEntryNotFoundError

from lssgen.errors import FetchError, ModelError
from lssgen.training.autoencoder import load_autoencoder

CPU = torch.device("cpu")


def test_a_vae_is_found_in_its_pipeline_and_alone(vae: Path) -> None:
    inside, alone = load_autoencoder(str(vae), CPU), load_autoencoder(str(vae / "vae"), CPU)
    assert (inside.channels, inside.cell_px) == (4, 4)
    assert inside.sha256 == alone.sha256


def test_latents_are_in_model_space(vae: Path) -> None:
    ours, theirs = load_autoencoder(str(vae), CPU), AutoencoderKL.from_pretrained(vae / "vae").eval()
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        spread = theirs.encode(pictures).latent_dist
        posterior = ours.encode(pictures)
        assert torch.allclose(posterior.mean, (spread.mean - 0.1) * 1.5, atol=1e-6)  # one rounding apart
        assert torch.allclose(posterior.std, spread.std * 1.5, rtol=1e-6)
        assert torch.allclose(ours.decode(posterior.mean), theirs.decode(spread.mean).sample, atol=1e-5)


def test_per_channel_means_and_deviations_are_undone_by_decoding(vae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vae / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    config |= {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [5.0, 6.0, 7.0, 8.0]}
    (folder / "config.json").write_text(json.dumps(config))
    space = load_autoencoder(str(folder), CPU).space
    latent = torch.randn(1, 4, 3, 3)
    assert torch.allclose(space.from_vae(space.to_vae(latent)), latent, atol=1e-5)
    means = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    assert torch.allclose(space.from_vae(means), torch.zeros(1, 4, 1, 1))


def test_a_tiny_autoencoder_has_no_spread(tiny_vae: Path) -> None:
    autoencoder = load_autoencoder(str(tiny_vae), CPU)
    posterior = autoencoder.encode(torch.zeros(1, 3, 32, 32))
    assert (autoencoder.cell_px, autoencoder.channels) == (8, 4)
    assert posterior.mean.shape == (1, 4, 4, 4)
    assert not posterior.std.any()


def test_another_class_is_refused(vae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vae / "vae", tmp_path / "vae")
    (folder / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(ModelError, match="is 'VQModel', but upsamplers are trained for AutoencoderKL and AutoencoderT"):
        load_autoencoder(str(folder), CPU)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no diffusion_pytorch_model\.safetensors in"):
        load_autoencoder(str(tmp_path), CPU)


def test_damaged_weights_are_refused(vae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vae / "vae", tmp_path / "vae")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_autoencoder(str(folder), CPU)


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no folder './not/a/folder', and it is no hub id either"):
        load_autoencoder("./not/a/folder", CPU)


def test_a_hub_that_does_not_answer_is_a_fetch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("lssgen.training.autoencoder.snapshot_download", offline)
    with pytest.raises(FetchError, match=r"'some/vae' is no folder here, and the hub did not give it: no connection"):
        load_autoencoder("some/vae", CPU)
