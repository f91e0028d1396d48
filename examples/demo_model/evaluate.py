"""Score the finished demo model on held-out captions: at 128 px, at 256 px, and in two stages from 128 to 256 px."""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SD3Transformer2DModel
from sampling import TextTable, decode, denoise, embed, held_out_prompts, shares, sigmas_of
from torch import Tensor

BATCH = 16


@torch.no_grad()
def enlarge(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents (b, c, 2h, 2w) of the bicubically enlarged pictures: a stand-in for a trained latent upsampler."""
    pictures = torch.from_numpy(decode(vae, latents)).permute(0, 3, 1, 2).float() / 127.5 - 1
    large = F.interpolate(pictures, scale_factor=2, mode="bicubic", align_corners=False).clamp(-1, 1)
    means = torch.cat([vae.encode(part).latent_dist.mean for part in large.split(BATCH)])
    return (means - vae.config.shift_factor) * vae.config.scaling_factor


def draw_latents(
    model: tuple[SD3Transformer2DModel, AutoencoderKL],
    text: TextTable,
    empty: TextTable,
    way: str,
    steps: int,
    guidance: float,
    restart: float,
) -> Tensor:
    """Latents of one batch, text: b rows, made the given `way`: "128", "256" or "two stages"."""
    transformer, vae = model
    count, channels = len(text.pooled), vae.config.latent_channels
    side = 32 if way == "256" else 16
    x = denoise(transformer, torch.randn(count, channels, side, side), text, empty, sigmas_of(steps), guidance)
    if way == "two stages":
        large = enlarge(vae, x)
        x = (1 - restart) * large + restart * torch.randn_like(large)
        rest = [restart, *(sigma for sigma in sigmas_of(steps) if sigma < restart)]
        x = denoise(transformer, x, text, empty, rest, guidance)
    return x


def main(folder: Path, count: int, steps: int, guidance: float, restart: float, seed: int, ways: list[str]) -> None:
    """Print one JSON line for each way: the shares right and the seconds a picture took."""
    transformer = SD3Transformer2DModel.from_pretrained(folder / "transformer").float().eval()
    vae = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
    prompts = held_out_prompts(count)
    text, empty = embed(folder, prompts), embed(folder, [""])
    for way in ways:
        torch.manual_seed(seed)
        start = time.perf_counter()
        parts = [
            draw_latents((transformer, vae), text[rows], empty, way, steps, guidance, restart)
            for rows in torch.arange(count).split(BATCH)
        ]
        result = shares(decode(vae, torch.cat(parts)), prompts)
        seconds = round((time.perf_counter() - start) / count, 2)
        print(json.dumps({"way": way, "steps": steps, "guidance": guidance, "seconds": seconds} | result), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder, e.g. lssgen/models/demo")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--restart", type=float, default=0.75, help="noise level at which the second stage starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", default=["128", "256", "two stages"])
    args = parser.parse_args()
    main(args.model, args.count, args.steps, args.guidance, args.restart, args.seed, args.ways)
