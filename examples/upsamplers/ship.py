"""Put trained upsamplers into the package: half precision, and a card each.

    python ship.py --trained DIR --judged upsamplers.json [--output ../../lssgen/models/upsamplers]

--trained holds an --output of `lssgen train-upsampler` for each space, --judged is what `benchmarks/upsamplers.py`
found. The card's numbers are its, and the recipe is what the training's report says.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from photographs import photographs

from lssgen.models.families import FAMILIES
from lssgen.models.nets.upsamplers import load_upsampler
from lssgen.models.published import NORMALISATION
from lssgen.models.spaces import SPACES, Space

PACKAGE = Path(__file__).parents[2] / "lssgen" / "models" / "upsamplers"
LICENCE = "Apache-2.0"
TINY = {"flux": "taef1", "sd3": "taesd3", "sdxl": "taesdxl", "sd": "taesd", "flux2": "taef2"}
RECIPE = (
    "minutes", "batch", "height", "width", "zoom", "turns", "downscale", "learning_rate", "weight_decay", "ema",
    "latent_weight", "image_loss", "image_weight", "bf16", "seed",
)  # fmt: skip
"""Conditions of the training that the card repeats."""

TAKEN = "`lssgen export` takes it by itself where a model's latents are these and nothing nearer to the model is there."
NOT_TAKEN = (
    "No family of lssgen paints these latents yet; `lssgen train-upsampler --space {space} --start-from` takes it."
)

CARD = """# Latent upsampler: {title}

Doubles a latent of {title} ({channels} channels, cells of 8 px) between two stages. {parameters:,} parameters in F16.
{use}

## Data

{count} photographs, from packages of wallpapers and sample pictures: {licences}.
`examples/upsamplers/photographs.tsv` names each with its author and licence; none is part of this package. Ten others,
which no training saw, judge.

## Licence

{licence}. It was trained in the space of {tiny} (github.com/madebyollin/taesd, MIT), of which it holds nothing.

## Recipe

`lssgen train-upsampler`, {steps:,} steps in {seconds} s on {device}, torch {torch}:

{recipe}

## Numbers

{photographs} photographs that no training saw, as `benchmarks/upsamplers.py` judges; `docs/upsampler_numbers.md` has
the other spaces, the time that it takes, and pictures.

{table}

## Limits

- It was trained in the space of a distilled autoencoder, which the real one's latents resemble and are not. Training
  against the real one, `lssgen-train-upsampler --vae VAE --images FOLDER`, is better.
- It has seen photographs, and few of them: no drawings, screens or text.
- Halved photographs stood for what a first stage paints.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--judged", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=PACKAGE)
    args = parser.parse_args(argv)
    judged = json.loads(args.judged.read_text())
    for name, found in judged["spaces"].items():
        ship(SPACES[name], args.trained / name, found, args.output / name)
    return 0


def ship(space: Space, trained: Path, judged: Mapping[str, Any], folder: Path) -> None:
    """Write one of them."""
    network = load_upsampler(trained, dtype=torch.float16)
    made: Mapping[str, Any] = json.loads((trained / "report.json").read_text())["conditions"]
    network.save_pretrained(folder)
    card = lssgen_json(space, made, judged["means"])
    (folder / "lssgen.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    parameters = sum(weights.numel() for weights in network.parameters())
    (folder / "README.md").write_text(readme(space, made, judged, parameters), encoding="utf-8")


def lssgen_json(space: Space, made: Mapping[str, Any], means: Mapping[str, Any]) -> Mapping[str, Any]:
    """What exports read of it."""
    tiny = TINY[space.name]
    return {
        "vae": f"{tiny} (madebyollin/taesd)",
        "vae_sha256": made["vae sha256"],
        "space": space.name,
        **{name: space.normalisation.get(name) for name in NORMALISATION},
        "licence": LICENCE,
        "origin": f"It is lssgen's own, trained on {len(trained_on())} photographs in the space of {tiny}, a distilled "
        "autoencoder: one that lssgen-train-upsampler trains against the model's own VAE is better.",
        "trained_on": f"{len(trained_on())} photographs: {licences()}",
        "steps": made["steps made"],
        "metrics": {name: round(value, 5) for name, value in means["ours"].items()},
    }


def readme(space: Space, made: Mapping[str, Any], judged: Mapping[str, Any], parameters: int) -> str:
    """Its card, for people."""
    return CARD.format(
        title=space.title,
        channels=space.channels,
        parameters=parameters,
        count=len(trained_on()),
        licences=licences(),
        licence=LICENCE,
        tiny=TINY[space.name],
        recipe="\n".join(f"- {name.replace('_', ' ')}: {said(made[name])}" for name in RECIPE),
        use=TAKEN
        if any(space.name in family.latent_spaces for family in FAMILIES.values())
        else NOT_TAKEN.format(space=space.name),
        steps=made["steps made"],
        seconds=made["seconds"],
        device=made["device"],
        torch=made["torch"],
        photographs=len(judged["photographs"]["ours"]),
        table=table(judged["means"]),
    )


def table(means: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        "| doubling by | latent error | over bilinear's | PSNR, dB | SSIM |",
        "|---|---|---|---|---|",
        *(
            f"| {way} | {found['error']:.3f} | {found['error'] / means['bilinear']['error']:.2f} | "
            f"{found['psnr_db']:.2f} | {found['ssim']:.3f} |"
            for way, found in means.items()
        ),
    ]
    return "\n".join(lines)


def said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trained_on() -> Sequence[str]:
    """Licences of the photographs that were trained on."""
    return [photograph.licence for photograph in photographs() if photograph.use == "train"]


def licences() -> str:
    """How many photographs there are of each licence."""
    return ", ".join(f"{count} {licence}" for licence, count in Counter(trained_on()).most_common())


if __name__ == "__main__":
    sys.exit(main())
