"""Train the demo model's autoencoder (AutoencoderKL, f8) on drawn scenes and write it as a diffusers folder."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from scenes import draw, random_scene
from torch import Tensor

KL_WEIGHT = 1e-3
SHRINK_SHARE = 0.1
"""Share of the steps that decode the latent shrunk by two against the picture shrunk by two (Kouzelis et al. 2025)."""
WINDOWS = ((64, 12, 0.8), (128, 3, 0.2))
"""(side in px, batch, share of the steps) for the first four fifths of the time: small windows, many steps."""
LAST_WINDOWS = ((64, 12, 0.3), (128, 3, 0.3), (256, 1, 0.4))
"""For the last fifth: whole pictures too, whose plain background shifts the group norms' statistics."""
POOL = {128: 2000, 256: 1200, 512: 100}
"""Scenes drawn once and cropped again and again: side in px to how many."""


def build() -> AutoencoderKL:
    """An autoencoder of 8x with 6 latent channels and no attention."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=6,
        norm_num_groups=4,
        sample_size=256,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )
    start_linear(vae)
    return vae


@torch.no_grad()
def start_linear(vae: AutoencoderKL) -> None:
    """Start as a linear map that carries colour: residual branches at zero, the rest averaging or copying.

    Group normalisation takes the mean colour out of what the nonlinear branches see, so that from an ordinary start
    the network needs thousands of steps to tell purple from blue.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
        elif isinstance(module, (Downsample2D, Upsample2D)):
            weight = module.conv.weight
            weight.mul_(0.3)
            weight[:, :, 1, 1] += torch.eye(*weight.shape[:2])


def draw_pool(rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Side in px to pictures (n, side, side, 3), uint8."""
    return {
        side: np.stack([draw(random_scene(rng, lone_share=0.3), side) for _ in range(count)])
        for side, count in POOL.items()
    }


def crops(pool: dict[int, np.ndarray], side: int, count: int, rng: np.random.Generator) -> Tensor:
    """Windows (count, 3, side, side) in [-1, 1]; of three random ones the busiest, so that most hold edges."""
    chosen = []
    scales = [scale for scale in pool if scale >= side]
    for _ in range(count):
        pictures = pool[scales[rng.integers(len(scales))]]
        tries = []
        for _ in range(3 if pictures.shape[1] > side else 1):
            number, (top, left) = (
                rng.integers(len(pictures)),
                rng.integers(0, pictures.shape[1] - side + 1, 2),
            )
            tries.append(pictures[number, top : top + side, left : left + side])
        chosen.append(max(tries, key=lambda window: window[::4, ::4].std()))
    return torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture_loss(got: Tensor, want: Tensor) -> Tensor:
    """L1 + MSE + L1 of the gradients along both axes. got, want: (b, 3, h, w)."""
    error = got.float() - want
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * slopes


def step_loss(vae: AutoencoderKL, x: Tensor, shrink: bool) -> tuple[Tensor, Tensor]:
    """(picture loss, KL per latent element in nats) of one batch x: (b, 3, h, w)."""
    mean, log_variance = vae.encoder(x).chunk(2, 1)
    log_variance = log_variance.clamp(-20, 5)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).float().mean()
    z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    if shrink:
        z, x = F.avg_pool2d(z, 2), F.avg_pool2d(x, 2)
    return picture_loss(vae.decoder(z), x), kl


@torch.no_grad()
def measure(vae: AutoencoderKL, side: int = 256, count: int = 12) -> dict[str, object]:
    """PSNR in dB on whole pictures, and the latents' mean and standard deviation (all, and each channel)."""
    rng = np.random.default_rng(12345)
    errors, latents = [], []
    for _ in range(count):
        x = torch.from_numpy(draw(random_scene(rng, 0.3), side)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents.append(vae.encode(x).latent_dist.mean)
        errors.append(float((vae.decode(latents[-1]).sample.clamp(-1, 1) - x).square().mean()))
    z = torch.cat(latents)
    return {
        "psnr_db": round(float(np.mean([10 * np.log10(4 / error) for error in errors])), 2),
        "mean": float(z.mean()),
        "std": float(z.std()),
        "channel_stds": [round(float(s), 3) for s in z.std((0, 2, 3))],
        "channel_means": [round(float(s), 3) for s in z.mean((0, 2, 3))],
    }


def learning_rate(peak: float, done: float) -> float:
    """Linear warm-up over the first 5 %, flat to 30 %, then a cosine to zero. `done`: share of the time spent."""
    return peak * float(min(1, done / 0.03, 0.5 + 0.5 * np.cos(np.pi * max(0.0, (done - 0.3) / 0.7))))


def train(work: Path, out: Path, budget_minutes: float, peak_lr: float) -> None:
    """Train for `budget_minutes`, resuming from work/autoencoder.pt, and write the fp16 folder `out`."""
    torch.manual_seed(0)
    vae = build().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.98), weight_decay=1e-4)
    state_file, step, before = work / "autoencoder.pt", 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        step, before = state["step"], state["minutes"]
        vae.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    rng = np.random.default_rng(step)
    pool, start = draw_pool(rng), time.perf_counter()
    log = (work / "autoencoder.jsonl").open("a")
    while (minutes := before + (time.perf_counter() - start) / 60) < budget_minutes:
        step += 1
        optimiser.param_groups[0]["lr"] = learning_rate(peak_lr, minutes / budget_minutes)
        windows = WINDOWS if minutes < 0.8 * budget_minutes else LAST_WINDOWS
        side, count, _ = windows[rng.choice(len(windows), p=[share for *_, share in windows])]
        x = crops(pool, side, count, rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            fit, kl = step_loss(vae, x, bool(rng.random() < SHRINK_SHARE))
        optimiser.zero_grad(set_to_none=True)
        (fit + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if step % 20 == 0:
            row = {
                "step": step,
                "minutes": round(minutes, 2),
                "loss": round(fit.item(), 4),
                "kl": round(kl.item(), 3),
            }
            print(json.dumps(row), file=log, flush=True)
        if step % 250 == 0:
            save(vae, optimiser, step, minutes, state_file)
            print(json.dumps(row | measure(vae)), flush=True)
    save(vae, optimiser, step, budget_minutes, state_file)
    export(vae, out)


def save(vae: AutoencoderKL, optimiser: torch.optim.Optimizer, step: int, minutes: float, to: Path) -> None:
    """Write the checkpoint that `train` resumes from."""
    state = {"step": step, "minutes": minutes, "model": vae.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save(state, to)


def export(vae: AutoencoderKL, out: Path) -> None:
    """Write the folder with the scaling and shift that bring the latents to mean 0 and standard deviation 1."""
    found = measure(vae)
    copy = build()
    copy.load_state_dict(vae.state_dict())
    copy.register_to_config(scaling_factor=round(1 / found["std"], 4), shift_factor=round(found["mean"], 4))
    copy.half().save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and curves")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, e.g. lssgen/models/demo/vae")
    parser.add_argument("--minutes", type=float, default=12.9, help="the learning rate falls to zero over them")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train(args.work, args.out, args.minutes, args.lr)
