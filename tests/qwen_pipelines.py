"""What the oracle tests of the Qwen-Image families share: parts of diffusers' pipelines, as a loop takes them."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LONG = "a big ring, and a small square, and a red circle left of them"
"""A prompt of another length than the others."""


def unpacked(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """(n, tokens, channels) as diffusers has a picture -> (n, C, h, w)."""
    whole = tokens.reshape(len(tokens), rows, columns, -1, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return whole.reshape(len(tokens), -1, rows * patch, columns * patch)


def packed(x: Tensor, patch: int) -> Tensor:
    """Undoes `unpacked`."""
    n, channels, height, width = x.shape
    cells = x.reshape(n, channels, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, height * width // patch**2, -1)


def kept_long(output: Tensor, positive: Tensor) -> Tensor:
    """The norm of every token of 2 x 2 cells, as QwenImagePipeline has it."""
    guided = packed(output, 2)
    ratio = torch.norm(packed(positive, 2), dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True)
    return unpacked(guided * ratio, output.shape[2] // 2, output.shape[3] // 2, 2)


def generators(seeds: tuple[int, ...]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


class Frames:
    """A pipeline whose autoencoder takes and gives pictures in model space, for `loop.staged`."""

    def __init__(self, pipe: Any) -> None:
        config = pipe.vae.config
        self._vae = pipe.vae
        self.scheduler, self.vae = pipe.scheduler, self
        self.config = SimpleNamespace(scaling_factor=1.0, shift_factor=None)
        self._mean, self._std = (torch.tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))

    def decode(self, x: Tensor) -> Any:
        return SimpleNamespace(sample=self._vae.decode((x * self._std + self._mean).unsqueeze(2)).sample[:, :3, 0])

    def encode(self, picture: Tensor) -> Any:
        if self._vae.encoder.conv_in.in_channels == 4:
            picture = torch.cat((picture, torch.ones_like(picture[:, :1])), 1)
        found = self._vae.encode(picture.unsqueeze(2)).latent_dist
        mean, std = found.mean[:, :, 0], found.std[:, :, 0]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=(mean - self._mean) / self._std, std=std / self._std))


class TextProcessor:
    """A processor that has no pictures to prepare: what a pipeline asks of it where it paints from text alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, *, text: list[str], **options: Any) -> Any:
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: list[Any], **options: Any) -> Any:
        """For one conversation, in a list, as processors have it."""
        return [self.tokenizer.apply_chat_template(messages, **options)]
