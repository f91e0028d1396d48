"""Write docs/upsampler_numbers.md: how well latents are doubled in five spaces, and what it costs.

python docs/make_upsamplers.py
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "upsampler_numbers.md"
RESULTS = ROOT / "benchmarks" / "results"
PHOTOGRAPHS = ROOT / "examples" / "upsamplers" / "photographs.tsv"

TITLES = {
    "flux": "FLUX.1 and Z-Image",
    "sd3": "Stable Diffusion 3 and 3.5",
    "sdxl": "Stable Diffusion XL",
    "sd": "Stable Diffusion 1.x and 2.x",
    "flux2": "FLUX.2",
}

HEAD = """# Upsamplers in numbers

This page is written by `docs/make_upsamplers.py` from what `benchmarks/upsamplers.py` found.
[upsampler.md](upsampler.md) says what the upsamplers are.
"""

EXPLAINED = """
`error` is the energy of the difference between the doubled latent and the latent of the photograph, over the energy of
the latter. PSNR and SSIM are those of the decoded picture against the photograph. `cast` is how far the colours of
blocks of 64 px are from those of the decoded true latent, in grey levels of 255. `detail` is the energy of the finest
details over that of the decoded true latent: below 1 is blur, above 1 noise or mosaic. `grid` is the energy at the
frequencies of a grid of 4 px over that beside them, in the parts that are shown below: 0.8 in the photographs, and
above 1 where a mosaic is seen. "True latent" is what the small autoencoder alone loses.
"""

PUBLISHED: Mapping[str, tuple[Sequence[float], ...]] = {
    "flux": ((0.105, 0.136), (0.26, 0.36), (0.30, 0.40)),
    "sd3": ((0.18, 0.29), (0.21, 0.31)),
    "sdxl": ((0.47, 0.66), (0.55, 0.73)),
    "sd": ((0.34, 0.45), (0.35, 0.45)),
}
"""Error of the published upsampler and of bilinear, on sets of twelve, six and four photographs that are not these."""

AGAINST = """
## Against the published upsamplers

Their licence is for research, so they were measured once, on other photographs, and are not here to be measured again.
What can be compared is the ratio of an upsampler's error to that of bilinear **on the same photographs**; it is a ratio
across sets of photographs, and no more than that. For FLUX.2 none is published.
"""

COST = """
## What it costs

Milliseconds from a latent of 512 px to one of 1024 px, in torch; each way in turn, medians. "Published shape" is the
published network with random weights, which take as long as any. The way through pixels goes through the small
autoencoder here, of 2.4 million weights; a model's own VAE has some 84 million.
"""


def page() -> str:
    """The whole page."""
    found = read("upsamplers")
    parts = [HEAD, conditions(found["conditions"]), EXPLAINED]
    for space, about in found["spaces"].items():
        parts += [f"\n## {TITLES[space]}\n\n", quality(about), picture(space)]
    parts += [credited(), AGAINST, "\n", against(found["spaces"]), COST, "\n", costs(found)]
    return "".join(parts).rstrip("\n") + "\n"


def read(name: str) -> Mapping[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def conditions(had: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {width} x {height}" for name, (width, height) in had["photographs"].items())
    return (
        f"\nConditions: {had['date']}; {had['device']}; {had['precision']}; torch {had['torch']}; "
        f"{len(had['photographs'])} photographs that no training saw, in pixels: {sizes}.\n"
    )


def quality(about: Mapping[str, Any]) -> str:
    rows = [
        (
            way,
            f"{found['error']:.3f}",
            f"{found['psnr_db']:.2f}",
            f"{found['ssim']:.3f}",
            f"{found['cast']:.1f}",
            f"{found['detail']:.2f}",
            f"{about['grid'][way]:.2f}",
        )
        for way, found in about["means"].items()
    ]
    return table(("doubling by", "error", "PSNR, dB", "SSIM", "cast", "detail", "grid"), rows)


def picture(space: str) -> str:
    return f"\n![The liveliest parts of four photographs, by each way](images/upsampler_{space}.jpg)\n"


def credited() -> str:
    with PHOTOGRAPHS.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["use"] == "held out"]
    said = "; ".join(f"{Path(row['file']).stem} by {row['author']} ({row['licence']})" for row in rows)
    return f"\nPhotographs: {said}. Shown above are some that are in the public domain, CC0 or CC-BY.\n"


def against(spaces: Mapping[str, Any]) -> str:
    rows: list[Sequence[str]] = []
    for space, about in spaces.items():
        published = [ours / bilinear for ours, bilinear in PUBLISHED.get(space, ())]
        means = about["means"]
        rows.append(
            (
                TITLES[space],
                ", ".join(f"{one:.2f}" for one in published) or "-",
                f"{means['ours']['error'] / means['bilinear']['error']:.2f}",
                difference(means, "psnr_db", ".2f") + " dB",
                difference(means, "ssim", ".3f"),
            )
        )
    head = ("space", "published over bilinear", "ours over bilinear", "ours, PSNR over the pixel path's", "SSIM")
    return table(head, rows)


def difference(means: Mapping[str, Mapping[str, float]], key: str, form: str) -> str:
    return f"{means['ours'][key] - means['pixel path'][key]:+{form}}"


def costs(found: Mapping[str, Any]) -> str:
    machines = [found, *(read(path.stem) for path in sorted(RESULTS.glob("upsamplers_*.json")))]
    parts: list[str] = []
    for one in machines:
        ways = next(iter(one["spaces"].values()))["milliseconds"]
        rows = [
            (TITLES[space], *(f"{about['milliseconds'][way]:.2f}" for way in ways))
            for space, about in one["spaces"].items()
        ]
        had = one["conditions"]
        where = (
            f"{had['date']}; {had['device']}, {had['threads']} CPU threads; {had['precision']}; torch {had['torch']}"
        )
        parts.append(f"{table(('space', *ways), rows)}\n{where}.\n")
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
