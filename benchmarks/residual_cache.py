"""Would a cached step be better if the network's ends were run in it? Measured on the demo model, in torch.

    python benchmarks/residual_cache.py --model lssgen/models/demo --prompts 16

In a cached step of lssgen the network's output is extrapolated and nothing is run (`lssgen.plan.caching`). The other
way that is in use runs the first and the last block, and carries what the blocks between them added, as it was at the
last full step or along a line. This compares the two at the same masks: how alike the pictures are to those of all
steps, and what a mask costs, in full steps: a cached step of the other way costs its two blocks' share of all blocks,
which is 2 of 5 for the demo model and would be 2 of 57 for FLUX.1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "demo_model"))

from sampling import decode, embed, held_out_prompts, sigmas_of  # noqa: E402  (scripts, not a package)

from lssgen.plan.caching import MASKS  # noqa: E402

STEPS, GUIDANCE = 20, 4.0


class Line:
    """Values that were seen, and the line through the last two, or the last one where `order` is 0."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._seen: list[tuple[float, Tensor]] = []

    def add(self, at: float, value: Tensor) -> None:
        self._seen = [*self._seen[-1:], (at, value)]

    def at(self, where: float) -> Tensor:
        here, value = self._seen[-1]
        if not self._order or len(self._seen) < 2:
            return value
        before, older = self._seen[0]
        return value + (value - older) * ((where - here) / (here - before))


class Middle(nn.Module):
    """The blocks between the first and the last: run, or what they added carried on.

    Attributes:
        sigma: Where the step is.
        cached: True: they are not run.
        lines: What they added to the text's tokens and to the picture's.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.sigma = 1.0
        self.cached = False
        self.lines = (Line(0), Line(0))

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **more: object) -> tuple[Tensor, Tensor]:
        before = (encoder_hidden_states, hidden_states)
        if self.cached:
            text, picture = (value + line.at(self.sigma) for value, line in zip(before, self.lines, strict=True))
            return text, picture
        text, picture = before
        for block in self.blocks:
            text, picture = block(hidden_states=picture, encoder_hidden_states=text, **more)
        for line, was, now in zip(self.lines, before, (text, picture), strict=True):
            line.add(self.sigma, now - was)
        return text, picture


@torch.no_grad()
def sampled(
    network: SD3Transformer2DModel, conditioning: tuple[Tensor, Tensor], x: Tensor, cached: Sequence[bool], way: str
) -> Tensor:
    """Euler with classifier-free guidance over all steps, those of a mask cached in some way."""
    kind, _, order = way.partition(" ")
    middle = network.transformer_blocks[1]
    middle.lines = (Line(int(order or 0)), Line(int(order or 0)))
    output = Line(int(order or 0))
    features, pooled = conditioning
    for (sigma, after), skip in zip(pairwise(sigmas_of(len(cached))), cached, strict=True):
        middle.sigma, middle.cached = sigma, skip and kind == "blocks"
        if skip and kind == "output":
            velocity = output.at(sigma)
        else:
            both = network(
                hidden_states=torch.cat([x, x]),
                encoder_hidden_states=features,
                pooled_projections=pooled,
                timestep=torch.full((2 * len(x),), 1000 * sigma),
            ).sample
            without, with_text = both.chunk(2)
            velocity = without + GUIDANCE * (with_text - without)
            output.add(sigma, velocity)
        x = x + (after - sigma) * velocity
    return x


def psnr(pictures: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over pictures of the peak signal to noise, in dB."""
    errors = np.square(pictures.astype(np.float64) - wanted.astype(np.float64)).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255.0**2 / np.maximum(errors, 1e-9))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo checkpoint")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "residual_cache.json")
    args = parser.parse_args()
    network = SD3Transformer2DModel.from_pretrained(args.model / "transformer").float().eval()
    vae = AutoencoderKL.from_pretrained(args.model / "vae").float().eval()
    blocks = list(network.transformer_blocks)
    share = 2 / len(blocks)
    network.transformer_blocks = nn.ModuleList([blocks[0], Middle(blocks[1:-1]), blocks[-1]])
    prompts = held_out_prompts(args.prompts)
    text, empty = embed(args.model, prompts), embed(args.model, [""])
    count = len(prompts)
    conditioning = (
        torch.cat([empty.features.expand(count, -1, -1), text.features]),
        torch.cat([empty.pooled.expand(count, -1), text.pooled]),
    )
    torch.manual_seed(0)
    noise = torch.randn(count, vae.config.latent_channels, 32, 32)

    def painted(cached: Sequence[bool], way: str) -> np.ndarray:
        return decode(vae, sampled(network, conditioning, noise, cached, way))

    wanted = painted((False,) * STEPS, "output 0")
    rows = []
    for mask in MASKS:
        cached = MASKS[mask].cached(STEPS)
        for way in ("output 1", "output 0", "blocks 0", "blocks 1"):
            cost = cached.count(False) + cached.count(True) * share * way.startswith("blocks")
            rows.append({"mask": mask, "way": way, "cost": round(cost, 1), "psnr": psnr(painted(cached, way), wanted)})
            print(json.dumps(rows[-1]), flush=True)
    for steps in (16, 14, 12, 10, 8, 6):
        rows.append({"mask": "", "way": f"{steps} steps", "cost": steps})
        rows[-1]["psnr"] = psnr(painted((False,) * steps, "output 0"), wanted)
        print(json.dumps(rows[-1]), flush=True)
    args.output.write_text(
        json.dumps({"prompts": count, "steps": STEPS, "blocks": len(blocks), "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
