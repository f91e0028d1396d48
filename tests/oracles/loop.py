"""Staged sampling in torch with diffusers' networks and schedulers: what a bundle's run is compared with.

Written from the published behaviour, without lssgen's plan, graphs or runtime; only the upsampler's module is shared,
which has an oracle of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lssgen.models.nets.latent_upsampler import LatentUpSampler

Predict = Callable[[Tensor, Tensor, tuple[int, int]], list[Tensor]]
"""Model input (B, C, h, w), timestep, stage size in pixels -> the network's output, one a branch, positive last."""


@dataclass(kw_only=True)
class Case:
    """One run.

    Attributes:
        pipe: A diffusers pipeline, for its vae and scheduler.
        predict: Calls the denoiser.
        channels, cell, align: Latent channels, pixels a cell, and cells that a side is a multiple of.
        patch: Cells along one side of a token.
        grid: "diffusion", or how a flow model's levels are made: "range", "even" or "labels".
        mu: Function of tokens and steps to the shift; None: the line in the scheduler's configuration.
        noise_patch: Cells along one side whose noise is drawn together, as channels.
        to_vae, from_vae: Functions between the network's latents and the VAE's; None: by scaling and shift.
        embedded: The guidance scale is not applied to the branches.
        upsampler: Folder of the upsampler.
        clamped: The shift of "even" levels grows no more above the scheduler's longest sequence.
        settled: What becomes of the guided output, given the positive branch.
    """

    pipe: Any
    predict: Predict
    channels: int
    cell: int = 4
    align: int = 1
    patch: int = 2
    grid: str = "diffusion"
    mu: Callable[[int, int], float] | None = None
    noise_patch: int = 1
    to_vae: Callable[[Tensor], Tensor] | None = None
    from_vae: Callable[[Tensor], Tensor] | None = None
    embedded: bool = False
    upsampler: Path | None = None
    clamped: bool = True
    settled: Callable[[Tensor, Tensor], Tensor] = lambda output, _: output
    options: Mapping[str, Any] = field(default_factory=dict)


def staged(
    case: Case,
    *,
    height: int,
    width: int,
    min_resolution: int,
    num_inference_steps: int,
    seeds: tuple[int, ...] = (0,),
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    start_sigma: float = 0.75,
    shorten: bool = False,
    base_height: int,
    base_width: int,
    scaling_space: str = "latent",
) -> Tensor:
    """(B, C, h, w) final latents; picture i draws its noise from a generator with seed i of `seeds`."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    last = int(log2(min(height, width) // min_resolution)) if start_sigma < 1 else 0
    unit = case.cell * case.align * 2**last
    rows, columns = height // unit * case.align * 2**last, width // unit * case.align * 2**last
    x = torch.empty(0)
    for stage in range(last, -1, -1):
        h, w = rows // 2**stage, columns // 2**stage
        ratio = log2(max(2, base_width / (case.cell * w) * (base_height / (case.cell * h))))
        steps = int(num_inference_steps // ratio) if shorten else num_inference_steps
        patch = case.noise_patch
        noise = F.pixel_shuffle(draw(generators, (1, case.channels * patch**2, h // patch, w // patch)), patch)
        times = timesteps(case, steps, h, w)
        if stage == last:
            x = noise * getattr(case.pipe.scheduler, "init_noise_sigma", 1.0)
        else:
            clean = enlarged(case, x, scaling_space, generators)
            x, times = entered(case, clean, noise, times, steps, start_sigma)
        for t in times:
            scale = getattr(case.pipe.scheduler, "scale_model_input", lambda x, _: x)
            seen = scale(x, t)
            outputs = case.predict(seen, t.expand(len(x)), (case.cell * h, case.cell * w))
            output = case.settled(guided(outputs, guidance_scale, guidance_rescale), outputs[-1])
            x = stepped(case.pipe.scheduler, output, t, x, generators)
    return x


def draw(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def timesteps(case: Case, steps: int, h: int, w: int) -> Tensor:
    """Set the scheduler up for a stage."""
    scheduler = case.pipe.scheduler
    if case.mu is not None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=case.mu(h // 2 * (w // 2), steps))
    elif case.grid == "even":
        config = scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        tokens = h // case.patch * (w // case.patch)
        tokens = min(tokens, config.max_image_seq_len) if case.clamped else tokens
        mu = tokens * slope + config.base_shift - slope * config.base_image_seq_len
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    elif case.grid == "labels":
        config = scheduler.config
        mu = config.max_shift * sqrt(h * w // 4 / config.base_image_seq_len) + config.base_shift
        labels = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)
        scheduler.set_timesteps(timesteps=labels, sigmas=labels / 1000, mu=mu)
    else:
        scheduler.set_timesteps(steps)
    return scheduler.timesteps


def enlarged(case: Case, x: Tensor, scaling_space: str, generators: list[torch.Generator]) -> Tensor:
    to_vae, from_vae = case.to_vae or _to_vae(case.pipe.vae), case.from_vae or _from_vae(case.pipe.vae)
    # Where squares are normalised together, only the VAE's own latents have neighbours that are alike.
    own, back = (case.to_vae, case.from_vae) if case.to_vae and case.from_vae else (_same, _same)
    if scaling_space == "resnet":
        assert case.upsampler is not None
        return back(LatentUpSampler.from_pretrained(case.upsampler)(own(x)))
    if scaling_space == "latent":
        return back(F.interpolate(own(x), scale_factor=2, mode="bicubic"))
    picture = F.interpolate(case.pipe.vae.decode(to_vae(x)).sample, scale_factor=2, mode="bicubic")
    posterior = case.pipe.vae.encode(picture).latent_dist
    patch, (_, channels, h, w) = case.noise_patch, posterior.mean.shape
    drawn = draw(generators, (1, channels * patch**2, h // patch, w // patch))
    return from_vae(posterior.mean + posterior.std * F.pixel_shuffle(drawn, patch))


def _same(x: Tensor) -> Tensor:
    return x


def _to_vae(vae: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)


def _from_vae(vae: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: (x - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def entered(
    case: Case, clean: Tensor, noise: Tensor, times: Tensor, steps: int, start_sigma: float
) -> tuple[Tensor, Tensor]:
    """Noise a later stage's first latent; returns it and the timesteps that are left."""
    scheduler = case.pipe.scheduler
    if case.grid == "diffusion":
        begin = max(steps - min(int(steps * start_sigma), steps), 0) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        times = times[begin:]
        return scheduler.add_noise(clean, noise, times[:1].repeat(len(clean))), times
    begin = max(i for i, t in enumerate(times) if t >= np.float32(start_sigma * 1000))
    scheduler.set_begin_index(begin)
    sigma = times[begin] / 1000
    return (1 - sigma) * clean + sigma * noise, times[begin:]


def guided(outputs: list[Tensor], scale: float, rescale: float) -> Tensor:
    if len(outputs) == 1:
        return outputs[0]
    negative, positive = outputs
    output = negative + scale * (positive - negative)
    if rescale:
        axes = (1, 2, 3)
        factor = positive.std(axes, keepdim=True) / output.std(axes, keepdim=True)
        output = rescale * output * factor + (1 - rescale) * output
    return output


def stepped(scheduler: Any, output: Tensor, t: Tensor, x: Tensor, generators: list[torch.Generator]) -> Tensor:
    if "LCM" in type(scheduler).__name__ or "Ancestral" in type(scheduler).__name__:
        return scheduler.step(output, t, x, generator=generators).prev_sample
    return scheduler.step(output, t, x).prev_sample


def relative(got: Any, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|, L2."""
    difference = torch.from_numpy(np.asarray(got)) - wanted
    return float(difference.norm() / wanted.norm())
