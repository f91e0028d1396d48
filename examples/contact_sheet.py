"""Paint the picture on top of the README: twelve held-out prompts, two stages each.

python examples/contact_sheet.py out/demo-bundle docs/images/demo.png
"""

import sys
from pathlib import Path

from PIL import Image

import lssgen

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from demo_quality import held_out_prompts

COLUMNS, ROWS, SIDE_PX, GAP_PX = 6, 2, 256, 8


def main(bundle: str, output: str) -> None:
    prompts = held_out_prompts(200)[: COLUMNS * ROWS]
    sheet = Image.new("RGB", (COLUMNS * (SIDE_PX + GAP_PX) - GAP_PX, ROWS * (SIDE_PX + GAP_PX) - GAP_PX), "white")
    with lssgen.load(bundle) as pipeline:
        for number, prompt in enumerate(prompts):
            row, column = divmod(number, COLUMNS)
            picture = pipeline(prompt, seed=number).images[0]
            sheet.paste(picture, (column * (SIDE_PX + GAP_PX), row * (SIDE_PX + GAP_PX)))
            print(f"row {row + 1}, column {column + 1}: {prompt}")
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS).save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
