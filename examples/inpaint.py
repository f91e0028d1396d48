"""Repaint one thing of a picture: the picture, its mask, and what three prompts make of it (docs/image_to_image.md).

python examples/inpaint.py out/demo-bundle docs/images/inpainting.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import lssgen

sys.path.insert(0, str(Path(__file__).parent / "demo_model"))

from scenes import draw, parse, place

SIDE_PX, GAP_PX = 256, 8
GIVEN = "a red circle left of a blue square on a white background"
THINGS = ("green star", "yellow triangle", "purple square")


def main(bundle: str, output: str) -> None:
    picture = Image.fromarray(draw(place(parse(GIVEN), np.random.default_rng(1)), SIDE_PX))
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rectangle((147, 77, 241, 171), fill=255)  # around the square
    shown = [picture, mask]
    with lssgen.load(bundle) as pipeline:
        for thing in THINGS:
            prompt = f"a red circle left of a {thing} on a white background"
            shown += pipeline(prompt, init_image=picture, mask_image=mask, seed=1).images
    sheet = Image.new("RGB", (len(shown) * (SIDE_PX + GAP_PX) - GAP_PX, SIDE_PX), "gray")
    for column, image in enumerate(shown):
        sheet.paste(image, (column * (SIDE_PX + GAP_PX), 0))
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
