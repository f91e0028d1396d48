"""Cut pictures for the documentation out of the sheets that `benchmarks/upsamplers.py` leaves.

    python side_by_side.py --judged DIR --output ../../docs/images

One picture for each space: photographs that are in the public domain, CC0 or CC-BY, each by the ways in `WAYS`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from photographs import photographs
from PIL import Image

from lssgen.training.report import CAPTION_PX, GAP_PX

WAYS = ("bicubic", "DCT embedding", "pixel path", "ours", "true latent", "photograph")
SHOWN = ("astronaut", "china", "life_by_Aitzol_Berasategi", "seeding_by_Clements_Engelhardt")
FREE = ("public domain", "CC0", "CC-BY-2", "CC-BY-4")


def side_by_side(sheet: Image.Image, ways: Sequence[str], names: Sequence[str]) -> Image.Image:
    """The rows `SHOWN` and the columns `WAYS` of a sheet.

    Args:
        sheet: Columns are `ways`, rows `names`, as `lssgen.training.report.contact_sheet` lays them.
    """
    width = (sheet.width + GAP_PX) // len(ways)
    height = (sheet.height - CAPTION_PX + GAP_PX) // len(names)
    made = Image.new("RGB", (len(WAYS) * width - GAP_PX, CAPTION_PX + len(SHOWN) * height - GAP_PX), "white")
    for column, way in enumerate(WAYS):
        left = ways.index(way) * width
        made.paste(sheet.crop((left, 0, left + width - GAP_PX, CAPTION_PX)), (column * width, 0))
        for row, name in enumerate(SHOWN):
            top = CAPTION_PX + names.index(name) * height
            part = sheet.crop((left, top, left + width - GAP_PX, top + height - GAP_PX))
            made.paste(part, (column * width, CAPTION_PX + row * height))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judged", type=Path, required=True, help="--output of benchmarks/upsamplers.py")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    licences = {photograph.name: photograph.licence for photograph in photographs()}
    assert all(licences[name].startswith(FREE) for name in SHOWN), "others may not be shown"
    found = json.loads((args.judged / "upsamplers.json").read_text())
    for space, about in found["spaces"].items():
        ways = [*about["photographs"], "photograph"]
        sheet = Image.open(args.judged / f"{space}.jpg")
        made = side_by_side(sheet, ways, list(found["conditions"]["photographs"]))
        made.save(args.output / f"upsampler_{space}.jpg", quality=88, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
