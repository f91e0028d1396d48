"""The small autoencoders (TAESD) in the place of a large one: graphs against diffusers' AutoencoderTiny."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from factory import liven
from torch.nn import functional as F

from lssgen.export.checkpoint import Checkpoint, Parts
from lssgen.export.hub import find_model
from lssgen.export.store import open_store
from lssgen.export.vae import with_vae
from lssgen.export.workshop import Workshop
from lssgen.models.nets.transition import Ways, transition_recipes
from lssgen.models.nets.vae import vae_recipes
from lssgen.parity.pieces import session
from lssgen.ports import Array

CLOSE = 1e-5
"""Relative; float32 sums in another order."""

Graphs = dict[str, Any]


def graphs_of(checkpoint: Checkpoint, folder: Path, cell_px: int) -> Graphs:
    """Sessions of the three graphs that a VAE is in."""
    components = Parts(checkpoint, torch.float32)
    transitions = transition_recipes(components, ("pixel",), 4, Ways())
    with open_store(folder) as store:
        workshop = Workshop(
            checkpoint=checkpoint, cell_px=cell_px, resolutions=((64, 64),), branches=1, token_axes={},
            precision="fp32", probe="small", threads=1, store=store, say=lambda _: None,
        )  # fmt: skip
        made = {recipe.name: workshop.graph(recipe) for recipe in (*vae_recipes(components, 4), *transitions)}
    return {name: session(folder / graph.file, 1) for name, graph in made.items()}


@pytest.fixture(scope="module")
def tiny(sd3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Graphs]:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    levels = {"encoder_block_out_channels": (64,) * 3, "decoder_block_out_channels": (64,) * 3}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    module: Any = AutoencoderTiny(latent_channels=4, scaling_factor=0.5, shift_factor=0.25, **levels, **blocks)
    liven(module)
    module.save_pretrained(folder / "vae")
    checkpoint = with_vae(find_model(str(sd3)), str(folder / "vae")).checkpoint
    return module.eval(), graphs_of(checkpoint, folder / "bundle", 4)


def relative(came: Array, wanted: torch.Tensor) -> float:
    return float(np.linalg.norm(came - wanted.numpy()) / np.linalg.norm(wanted.numpy()))


@torch.no_grad()
def test_picture_is_the_one_that_pipelines_paint(tiny: tuple[Any, Graphs]) -> None:
    module, graphs = tiny
    latent = torch.randn(2, 4, 6, 10)
    picture = module.decode(latent / 0.5 + 0.25).sample
    wanted = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    (came,) = graphs["decode"].run(None, {"latent": latent.numpy()})
    assert came.shape == (2, 24, 40, 3)
    assert abs(came.astype(int) - wanted.numpy()).max() <= 1


@torch.no_grad()
def test_latent_is_the_one_that_pipelines_read(tiny: tuple[Any, Graphs]) -> None:
    module, graphs = tiny
    grey = np.random.default_rng(0).integers(0, 256, (1, 24, 40, 3), np.uint8)
    read = module.encode(torch.from_numpy(grey).float().permute(0, 3, 1, 2) / 127.5 - 1).latents
    (came,) = graphs["encode"].run(None, {"picture": grey})
    assert relative(came, (read - 0.25) * 0.5) < CLOSE


@torch.no_grad()
def test_transition_goes_through_its_pictures(tiny: tuple[Any, Graphs]) -> None:
    module, graphs = tiny
    latent, noise = torch.randn(1, 4, 6, 10), torch.randn(1, 4, 12, 20)
    picture = module.decode(latent / 0.5 + 0.25).sample
    large = F.interpolate(picture, scale_factor=2, mode="bicubic", align_corners=False)
    wanted = 0.25 * (module.encode(large).latents - 0.25) * 0.5 + 0.75 * noise
    mix = np.array([[0.25, 0.75]], np.float32)
    (came,) = graphs["transition_pixel"].run(None, {"latent": latent.numpy(), "noise": noise.numpy(), "mix": mix})
    assert relative(came, wanted) < CLOSE
