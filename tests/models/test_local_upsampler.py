"""The package's own upsampler: what it promises of tiles, of its start, and of its checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lssgen.errors import UpsamplerError
from lssgen.models.nets.latent_upsampler import LatentUpSampler, published_config
from lssgen.models.nets.local_upsampler import LocalLatentUpSampler, LocalUpSamplerConfig, local_config
from lssgen.models.nets.upsamplers import NETWORKS, load_upsampler

TINY = LocalUpSamplerConfig(in_channels=4, out_channels=4, width=8, low_blocks=2, high_blocks=3, kernel=3)


def with_noise(config: LocalUpSamplerConfig) -> LocalLatentUpSampler:
    """Weights of which none is zero, so that every convolution looks as far as it can."""
    model = LocalLatentUpSampler(config).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def latent(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1)).double()


def moved_by_the_first_cell(config: LocalUpSamplerConfig) -> torch.Tensor:
    """How far each output cell moves, (height, width), where the first cell of the latent changes."""
    model, size = with_noise(config), 2 * config.reach + 5
    small = latent(size, size)
    changed = small.clone()
    changed[0, :, 0, 0] += 1e6
    return (model(changed) - model(small)).abs().amax((0, 1))


@pytest.mark.parametrize("config", [TINY, LocalUpSamplerConfig(in_channels=4, out_channels=4, width=8)])
def test_an_output_cell_depends_on_no_cells_beyond_reach(config: LocalUpSamplerConfig) -> None:
    moved = moved_by_the_first_cell(config)
    beyond = 2 * (config.reach + 1)  # low cell i holds the high cells 2 i and 2 i + 1
    assert moved[beyond:].max() == 0
    assert moved[:, beyond:].max() == 0


def test_the_reach_is_no_larger_than_it_must_be() -> None:
    assert moved_by_the_first_cell(TINY)[2 * TINY.reach :, 0].max() > 0


def test_tiles_that_overlap_by_the_reach_are_the_whole() -> None:
    model, reach, step = with_noise(TINY), TINY.reach, 7
    small = latent(19, 24)
    whole, tiled = model(small), torch.zeros(1, 4, 38, 48, dtype=torch.float64)
    for top in range(0, 19, step):
        for left in range(0, 24, step):
            above, before = max(0, top - reach), max(0, left - reach)
            part = model(small[:, :, above : top + step + reach, before : left + step + reach])
            inner = part[:, :, 2 * (top - above) :, 2 * (left - before) :][:, :, : 2 * step, : 2 * step]
            tiled[:, :, 2 * top : 2 * (top + step), 2 * left : 2 * (left + step)] = inner
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-12)  # float64; convolutions may sum in another order


def test_before_its_first_step_it_is_bilinear_interpolation() -> None:
    small = latent(5, 6).float()
    with torch.no_grad():
        large = LocalLatentUpSampler(local_config(4))(small)
    assert torch.equal(large, F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False))


@pytest.mark.parametrize("channels", [4, 16, 32])
def test_in_half_precision_its_weights_are_about_a_megabyte(channels: int) -> None:
    parameters = sum(p.numel() for p in LocalLatentUpSampler(local_config(channels)).parameters())
    assert 300_000 < parameters < 520_000


def test_a_batch_does_not_mix() -> None:
    model, small = (
        with_noise(TINY),
        latent(6, 6).repeat(3, 1, 1, 1) * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None],
    )
    np.testing.assert_allclose(model(small)[1], model(small[1:2])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_loaded_by_the_class_that_its_config_names(name: str, tmp_path: Path) -> None:
    configs = {"LatentUpSampler": published_config(4), "LocalLatentUpSampler": TINY}
    model = NETWORKS[name](configs[name])
    model.save_pretrained(tmp_path)
    loaded = load_upsampler(tmp_path)
    assert type(loaded).__name__ == name == json.loads((tmp_path / "config.json").read_text())["_class_name"]
    assert loaded.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_a_class_that_is_none_of_them_is_refused(tmp_path: Path) -> None:
    LatentUpSampler(published_config(4)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UpsamplerError, match="describes 'UNet2DModel', not a LatentUpSampler or LocalLatentUpSampler"):
        load_upsampler(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": 4}, "kernel is 4, but must be odd"),
        ({"low_blocks": 0}, "low_blocks is 0, but must be an int above 0"),
        ({"width": True}, "width is True, but must be an int above 0"),
        ({"out_channels": 8}, "in_channels is 4 and out_channels 8, but the latent that goes out is the one"),
        ({"norm_num_groups": 4}, "has fields that no LocalLatentUpSampler has: norm_num_groups"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    LocalLatentUpSampler(TINY).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UpsamplerError, match=words):
        load_upsampler(tmp_path)
