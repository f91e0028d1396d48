"""Draw the transformer's training scenes and encode them once: latents_<side>.pt with latents and caption numbers."""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from scenes import all_captions, caption, draw, random_scene

BATCH_PIXELS = 1 << 18


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, side: int, count: int, seed: int) -> dict[str, torch.Tensor]:
    """`latents` (count, c, side/8, side/8), float16, normalised as the pipeline expects; `captions` (count,) int64."""
    rng, numbers = np.random.default_rng(seed), {text: n for n, text in enumerate(all_captions())}
    batch, latents, captions = max(1, BATCH_PIXELS // side**2), [], []
    for start in range(0, count, batch):
        scenes = [random_scene(rng) for _ in range(min(batch, count - start))]
        pictures = torch.from_numpy(np.stack([draw(scene, side) for scene in scenes]))
        pictures = pictures.permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        latents.append(((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor).half().contiguous())
        captions += [numbers[caption(scene)] for scene in scenes]
    return {"latents": torch.cat(latents), "captions": torch.tensor(captions)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder; its vae/ encodes")
    parser.add_argument("--count-128", type=int, default=20000)
    parser.add_argument("--count-256", type=int, default=3500)
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.model / "vae").float().to(memory_format=torch.channels_last)
    for side, count in ((128, args.count_128), (256, args.count_256)):
        target = args.work / f"latents_{side}.pt"
        if target.exists():
            continue
        torch.save(encode_scenes(vae, side, count, seed=side), target)
        print(f"{count} scenes at {side} px", flush=True)
