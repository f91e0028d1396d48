"""A batched plain-torch sampler for the demo model, to score many prompts at once while it trains."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from scenes import all_captions, is_held_out
from score import Verdict, score
from torch import Tensor
from train_text_encoders import token_ids
from transformers import CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True, slots=True)
class TextTable:
    """Embeddings of many captions: features (n, tokens, d) and pooled (n, p), as SD3's pipeline assembles them."""

    features: Tensor
    pooled: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "TextTable":
        return TextTable(self.features[rows], self.pooled[rows])


@torch.no_grad()
def embed(model: Path, texts: list[str]) -> TextTable:
    """Run both text encoders of the folder `model`."""
    features, pooled = [], []
    for suffix in ("", "_2"):
        ids = token_ids(CLIPTokenizer.from_pretrained(model / f"tokenizer{suffix}"), texts)
        encoder = CLIPTextModelWithProjection.from_pretrained(model / f"text_encoder{suffix}").float().eval()
        outs = [encoder(part, output_hidden_states=True) for part in ids.split(1024)]
        features.append(torch.cat([out.hidden_states[-2] for out in outs]))
        pooled.append(torch.cat([out.text_embeds for out in outs]))
    return TextTable(torch.cat(features, -1), torch.cat(pooled, -1))


def sigmas_of(steps: int, shift: float = 3.0) -> list[float]:
    """The noise levels that FlowMatchEulerDiscreteScheduler walks: steps + 1 numbers from 1 to 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return [float(sigma) for sigma in scheduler.sigmas]


@torch.no_grad()
def denoise(
    transformer: SD3Transformer2DModel,
    x: Tensor,
    text: TextTable,
    empty: TextTable,
    sigmas: list[float],
    guidance: float,
) -> Tensor:
    """Euler along `sigmas` with classifier-free guidance. x: (b, c, h, w) at sigmas[0]; text: b rows; empty: one."""
    count = len(x)
    features = torch.cat([empty.features.expand(count, -1, -1), text.features])
    pooled = torch.cat([empty.pooled.expand(count, -1), text.pooled])
    for sigma, after in itertools.pairwise(sigmas):
        with torch.autocast("cpu", torch.bfloat16):
            velocity = transformer(
                hidden_states=torch.cat([x, x]),
                encoder_hidden_states=features,
                pooled_projections=pooled,
                timestep=torch.full((2 * count,), 1000 * sigma),
            ).sample.float()
        without, with_text = velocity.chunk(2)
        x = x + (after - sigma) * (without + guidance * (with_text - without))
    return x


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Pictures (b, height, width, 3), uint8, of normalised latents (b, c, h, w)."""
    raw = latents / vae.config.scaling_factor + vae.config.shift_factor
    with torch.autocast("cpu", torch.bfloat16):
        pictures = torch.cat([vae.decode(part).sample.float() for part in raw.split(8)])
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def held_out_prompts(count: int) -> list[str]:
    """`count` held-out captions spread evenly over the grammar, a tenth of them lone things."""
    texts = [text for text in all_captions() if is_held_out(text)]
    lone = [text for text in texts if "large" in text or "small" in text]
    pairs = [text for text in texts if text not in set(lone)]
    few = min(len(lone), count // 10)
    return [group[k * len(group) // n] for group, n in ((pairs, count - few), (lone, few)) for k in range(n)]


def shares(pictures: np.ndarray, prompts: list[str]) -> dict[str, float]:
    """Share of the pictures that are right, wholly and by each factor."""
    verdicts = [score(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    names = ("right", *Verdict.__dataclass_fields__)
    return {name: round(float(np.mean([getattr(v, name) for v in verdicts])), 3) for name in names}
