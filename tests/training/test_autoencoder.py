import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

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
    with pytest.raises(
        ModelError,
        match="is 'VQModel', but upsamplers are trained for AutoencoderKL and ",
    ):
        load_autoencoder(str(folder), CPU)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no diffusion_pytorch_model\.safetensors in"):
        load_autoencoder(str(tmp_path), CPU)


def test_damaged_weights_are_refused(vae: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vae / "vae", tmp_path / "vae")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_autoencoder(str(folder), CPU)


@pytest.fixture
def copy(vae: Path, tmp_path: Path) -> Path:
    return shutil.copytree(vae / "vae", tmp_path / "vae")


def reconfigured(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def reweighted(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    return folder


def test_weights_that_are_missing_are_not_made_up(copy: Path) -> None:
    reweighted(copy, lambda weights: weights.pop("decoder.conv_norm_out.weight"))
    with pytest.raises(ModelError, match=r"config\.json: 1 are missing, decoder\.conv_norm_out\.weight for one; fetch"):
        load_autoencoder(str(copy), CPU)


def test_a_configuration_of_a_smaller_network_is_refused(copy: Path) -> None:
    with pytest.raises(ModelError, match=r"do not fit its config\.json: \d+ have no place in it, .*; fetch both again"):
        load_autoencoder(str(reconfigured(copy, layers_per_block=-1)), CPU)


def test_weights_that_are_nan_are_refused_before_anything_is_encoded(copy: Path) -> None:
    reweighted(copy, lambda weights: weights["encoder.conv_in.bias"].fill_(torch.nan))
    with pytest.raises(ModelError, match="makes NaN or infinity of a grey picture; its weights are damaged"):
        load_autoencoder(str(copy), CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"scaling_factor": "x"}, {"scaling_factor": [1]}, {"shift_factor": {"a": 1}}, {"block_out_channels": 7},
        {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, {"latents_mean": "abcd", "latents_std": "abcd"},
        {"norm_num_groups": 0}, {"latent_channels": None}, {"act_fn": "nothing"},
    ],
)  # fmt: skip
def test_a_configuration_that_makes_no_sense_is_one_line(copy: Path, change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"^the VAE in .* cannot be (loaded|used): .*; fetch it again$") as caught:
        load_autoencoder(str(reconfigured(copy, **change)), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "\xff", ""])
def test_a_configuration_that_is_not_json_is_one_line(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json is not what it should be: .*; download the checkpoint again"):
        load_autoencoder(str(copy), CPU)


def test_a_pointer_in_the_place_of_the_weights_is_told_by_its_name(copy: Path) -> None:
    (copy / "diffusion_pytorch_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    with pytest.raises(ModelError, match="is a pointer of Git LFS and not the file itself"):
        load_autoencoder(str(copy), CPU)


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no folder './not/a/folder', and it is not a hub id either"):
        load_autoencoder("./not/a/folder", CPU)


def test_a_hub_that_does_not_answer_is_a_fetch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FetchError, match=r"'some/vae' is not a folder here, .* did not give it: no connection"):
        load_autoencoder("some/vae", CPU)
