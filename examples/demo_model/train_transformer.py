"""Train the demo model's SD3 transformer by flow matching on encoded scenes, and write the whole pipeline folder."""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from sampling import TextTable, decode, denoise, embed, held_out_prompts, shares, sigmas_of
from scenes import all_captions
from torch import Tensor, nn

WIDTH, LAYERS, HEAD = 160, 5, 32
SHIFT = 3.0
BATCH = {128: 64, 256: 16}
"""Pictures a step at each side in px; both hold 4096 image tokens."""
CAPTION_DROPOUT = 0.1
EMA = 0.999
WARM_UP_STEPS = 300
EVALUATION_STEPS, EVALUATION_GUIDANCE = 20, 3.5


def build(latent_channels: int, feature_width: int, pooled_width: int) -> SD3Transformer2DModel:
    """The transformer, with every modulation and the output at zero so that each block starts as the identity."""
    model = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=LAYERS,
        attention_head_dim=HEAD,
        num_attention_heads=WIDTH // HEAD,
        joint_attention_dim=feature_width,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    ends = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        ends += [block.norm1.linear, block.norm1_context.linear]
    for layer in ends:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


@dataclass(frozen=True, slots=True)
class Phase:
    """From this share of the time on, this share of the steps is at 256 px."""

    begins: float
    share_256: float


PHASES = (Phase(0.0, 0.0), Phase(0.33, 0.5), Phase(0.6, 0.65))


def noise_levels(count: int, shift: float) -> Tensor:
    """Sigmas (count,): nine tenths logit-normal, one tenth uniform, then shifted towards 1."""
    sigma = torch.where(torch.rand(count) < 0.9, torch.randn(count).sigmoid(), torch.rand(count))
    return shift * sigma / (1 + (shift - 1) * sigma)


def batches(work: Path, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (latents (b, c, h, w), caption numbers (b,)) at one side, shuffled anew each time round."""
    data, size = torch.load(work / f"latents_{side}.pt"), BATCH[side]
    while True:
        for rows in torch.randperm(len(data["captions"])).split(size):
            if len(rows) == size:
                yield data["latents"][rows].float(), data["captions"][rows]


def flow_loss(model: nn.Module, x0: Tensor, sigma: Tensor, noise: Tensor, features: Tensor, pooled: Tensor) -> Tensor:
    """Mean squared error of the velocity. x0, noise: (b, c, h, w); sigma: (b,); features: (b, n, d); pooled: (b, p)."""
    level = sigma[:, None, None, None]
    x = (1 - level) * x0 + level * noise
    velocity = model(
        hidden_states=x,
        encoder_hidden_states=features,
        pooled_projections=pooled,
        timestep=1000 * sigma,
        return_dict=False,
    )[0]
    return (velocity.float() - (noise - x0)).square().mean()


def learning_rate(peak: float, step: int, done: float) -> float:
    """Warm-up, flat until half of the time is spent, then linear to a fiftieth."""
    return peak * min(1.0, step / WARM_UP_STEPS, max(0.02, 1 - (done - 0.5) / 0.5))


def evaluate(
    model: SD3Transformer2DModel,
    vae: AutoencoderKL,
    text: TextTable,
    empty: TextTable,
    prompts: list[str],
    side: int,
) -> dict[str, float]:
    """Shares right of one picture for each prompt, from pure noise with a fixed seed."""
    channels = vae.config.latent_channels
    noise = torch.randn(len(prompts), channels, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    size = BATCH[side] // 2
    parts = [
        denoise(model, noise[rows], text[rows], empty, sigmas_of(EVALUATION_STEPS, SHIFT), EVALUATION_GUIDANCE)
        for rows in torch.arange(len(prompts)).split(size)
    ]
    return shares(decode(vae, torch.cat(parts)), prompts)


def export(model: SD3Transformer2DModel, latent_channels: int, out: Path) -> None:
    """Write transformer/ (fp16), scheduler/ and model_index.json beside the parts that other scripts wrote."""
    half = build(latent_channels, model.config.joint_attention_dim, model.config.pooled_projection_dim)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def train(work: Path, out: Path, budget_minutes: float, peak_lr: float, evaluate_every: float) -> None:
    """Train for `budget_minutes`, resuming from work/transformer.pt; `out` always holds the newest EMA weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(out / "vae").float()
    table, empty = embed(out, list(all_captions())), embed(out, [""])
    prompts = held_out_prompts(48)
    asked = embed(out, prompts)
    channels = vae.config.latent_channels
    model = build(channels, table.features.shape[-1], table.pooled.shape[-1])
    ema = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    step, before, state_file = 0, 0.0, work / "transformer.pt"
    if state_file.exists():
        state = torch.load(state_file)
        step, before = state["step"], state["minutes"]
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        torch.manual_seed(step)
    export(ema, channels, out)
    streams = {side: batches(work, side) for side in BATCH}
    compiled, start = torch.compile(flow_loss, dynamic=False), time.perf_counter()
    log, recent, last_evaluation = (work / "transformer.jsonl").open("a"), {128: [], 256: []}, before
    weights, averages = list(model.parameters()), list(ema.parameters())
    while (minutes := before + (time.perf_counter() - start) / 60) < budget_minutes:
        step, done = step + 1, minutes / budget_minutes
        optimiser.param_groups[0]["lr"] = learning_rate(peak_lr, step, done)
        share_256 = max((phase for phase in PHASES if phase.begins <= done), key=lambda phase: phase.begins).share_256
        side = 256 if torch.rand(()) < share_256 else 128
        x0, captions = next(streams[side])
        text = table[captions]
        dropped = torch.rand(len(captions)) < CAPTION_DROPOUT
        text.features[dropped], text.pooled[dropped] = empty.features, empty.pooled
        sigma = noise_levels(len(x0), SHIFT if side == 256 else 2.0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(model, x0, sigma, torch.randn_like(x0), text.features, text.pooled)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        torch._foreach_lerp_(averages, weights, 1 - min(EMA, (1 + step) / (10 + step)))
        recent[side].append(loss.item())
        if step % 100 == 0:
            means = {f"loss_{side}": round(sum(losses) / len(losses), 4) for side, losses in recent.items() if losses}
            print(json.dumps({"step": step, "minutes": round(minutes, 2)} | means), file=log, flush=True)
            recent = {128: [], 256: []}
        if minutes - last_evaluation >= evaluate_every:
            last_evaluation = minutes
            save(work, step, minutes, model, ema, optimiser)
            export(ema, channels, out)
            for side in (128, 256):
                row = {"step": step, "minutes": round(minutes, 2), "side": side}
                print(json.dumps(row | evaluate(ema, vae, asked, empty, prompts, side)), file=log, flush=True)
    save(work, step, budget_minutes, model, ema, optimiser)
    export(ema, channels, out)


def save(
    work: Path, step: int, minutes: float, model: nn.Module, ema: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Write the checkpoint that `train` resumes from, whole or not at all."""
    state = {"step": step, "minutes": minutes, "model": model.state_dict(), "ema": ema.state_dict()}
    torch.save(state | {"optimiser": optimiser.state_dict()}, work / "transformer.tmp")
    (work / "transformer.tmp").replace(work / "transformer.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with latents_<side>.pt; checkpoints go there")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder, e.g. lssgen/models/demo")
    parser.add_argument("--minutes", type=float, default=60.0, help="the learning rate falls to a fiftieth over them")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--evaluate-every", type=float, default=10.0, help="minutes between evaluations")
    args = parser.parse_args()
    train(args.work, args.out, args.minutes, args.lr, args.evaluate_every)
