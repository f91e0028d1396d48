"""Small autoencoders in TAESD's own naming: an encoder and a decoder, each a file whose keys count layers.

Source of the layers: madebyollin/taesd (MIT), taesd.py; the pooling of FLUX.2's from the keys and shapes of its files.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load
from torch import Tensor, nn

from lssgen.errors import ModelError
from lssgen.files import read_regular
from lssgen.models.nets.vae import TINY
from lssgen.training.machine import first_line

SUFFIXES = (".safetensors", ".pth")
ENCODER, DECODER = "encoder", "decoder"
WIDTH, POOL_GROUPS, BOUND = 64, 4, 3.0
"""Channels of every layer; groups of the norm that pools; bound of the latents that a decoder sees."""

LARGEST = 2**26
"""Bytes; the known ones have two and a half million."""

_STAGES = (1, 3, 3, 3)
"""Blocks of the encoder between its halvings, and of the decoder, backwards, between its doublings."""


class _Files(NamedTuple):
    encoder: Path
    decoder: Path


class _Latents(NamedTuple):
    latents: Tensor


class _Sample(NamedTuple):
    sample: Tensor


class TaesdAutoencoder(nn.Module):
    """The two networks, with the interface and the ranges of diffusers' AutoencoderTiny: pictures from -1 to 1.

    Args:
        channels: Of a latent.
        pools: The blocks at the latent's own size also look at the whole picture (FLUX.2's).
        config: What stands for config.json: the class, and how latents are normalised (not at all).
    """

    def __init__(self, channels: int, *, pools: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = _encoder(channels, pools), _decoder(channels, pools)
        self.config: Mapping[str, object] = {"_class_name": TINY, "latent_channels": channels, "scaling_factor": 1.0}

    def encode(self, pictures: Tensor) -> _Latents:
        """Args: pictures, (batch, 3, height, width) in [-1, 1]. Returns: (batch, channels, height / 8, width / 8)."""
        return _Latents(self.encoder((pictures + 1) / 2))

    def decode(self, latents: Tensor) -> _Sample:
        """Args: latents, (batch, channels, h, w). Returns: (batch, 3, 8 h, 8 w), about [-1, 1], not clamped."""
        return _Sample(self.decoder(latents) * 2 - 1)


def is_taesd_file(path: Path) -> bool:
    """Whether a path names one of the two files, by its name alone."""
    return path.suffix in SUFFIXES and any(part in path.name for part in (ENCODER, DECODER))


def load_taesd(file: Path) -> tuple[TaesdAutoencoder, Path]:
    """Load both halves in float32.

    Args:
        file: One of them; the other one lies beside it and has "decoder" in its name where this one has "encoder".

    Returns:
        The autoencoder, and the file of its encoder, which decides what its latents are.

    Raises:
        ModelError: One of them is missing, damaged, or not in this naming.
    """
    files = _Files(*(_half(file, part) for part in (ENCODER, DECODER)))
    weights = _Weights(*map(_read, files))
    channels = _channels(weights.encoder, files.encoder)
    pools = any(".pool." in key for key in weights.encoder)
    with torch.device("meta"):  # the weights come from the files: draw no random ones
        vae = TaesdAutoencoder(channels, pools=pools)
    for module, state, path in zip((vae.encoder, vae.decoder), weights, files, strict=True):
        try:
            module.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise ModelError(f"{path} is not a TAESD {path.stem}: {said[:300]}; fetch both files again") from error
    return vae, files.encoder


class _Weights(NamedTuple):
    encoder: Mapping[str, Tensor]
    decoder: Mapping[str, Tensor]


def _half(file: Path, part: str) -> Path:
    other = DECODER if part == ENCODER else ENCODER
    path = file.with_name(file.name.replace(other, part))
    if not path.is_file():
        raise ModelError(f"no {path.name} beside {file}; TAESD's naming is two files, NAME_encoder and NAME_decoder")
    return path


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        content = read_regular(path, LARGEST)
        state: object = (
            load(content)
            if path.suffix == ".safetensors"
            else torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        )
    except Exception as error:  # both libraries have errors of their own for every kind of damage
        raise ModelError(f"{path} cannot be read: {first_line(error)}; fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in cast(dict[str, object], state).values()):
        raise ModelError(f"{path} holds no table of weights; fetch it again")
    return cast(dict[str, Tensor], state)


def _channels(encoder: Mapping[str, Tensor], path: Path) -> int:
    """Channels of a latent: what the last layer makes."""
    numbers = [int(key.split(".")[0]) for key in encoder if key.split(".")[0].isdigit()]
    last = encoder.get(f"{max(numbers, default=0)}.bias")
    if last is None or last.dim() != 1:
        raise ModelError(f"{path} is not in TAESD's naming, whose keys are numbers of layers; give a diffusers folder")
    return len(last)


def _encoder(channels: int, pools: bool) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, WIDTH)]
    for number, blocks in enumerate(_STAGES):
        if number:
            layers.append(_conv(WIDTH, WIDTH, stride=2, bias=False))
        layers += _blocks(blocks, pools=pools and number == len(_STAGES) - 1)
    return nn.Sequential(*layers, _conv(WIDTH, channels))


def _decoder(channels: int, pools: bool) -> nn.Sequential:
    layers: list[nn.Module] = [_Bound(), _conv(channels, WIDTH), nn.ReLU()]
    for number, blocks in enumerate(reversed(_STAGES)):
        if number:
            layers += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
        layers += _blocks(blocks, pools=pools and number == 0)
    return nn.Sequential(*layers, _conv(WIDTH, 3))


def _blocks(count: int, *, pools: bool) -> list[nn.Module]:
    return [_Block(pools=pools) for _ in range(count)]


def _conv(c_in: int, c_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, stride=stride, bias=bias)


class _Bound(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / BOUND) * BOUND


class _Block(nn.Module):
    def __init__(self, *, pools: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH))
        wide = 4 * WIDTH
        self.pool: nn.Module | None = None
        if pools:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(POOL_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)
