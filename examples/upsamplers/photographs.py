"""Lay the photographs of `photographs.tsv` into two folders, one to train on and one to judge by.

    python photographs.py --sources DIR [DIR ...] --output DIR

Sources are folders into which the packages were unpacked: usr/share of Debian's lomiri-wallpapers-16.04,
lomiri-wallpapers-20.04 and mate-backgrounds, and the wheels of scikit-image and scikit-learn. Large photographs are
shrunk to a shorter side of 1440 px: what a camera's sensor guessed between its pixels teaches nothing.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

TABLE = Path(__file__).with_name("photographs.tsv")
SHORTER_SIDE, QUALITY = 1440, 93


@dataclass(frozen=True, slots=True)
class Photograph:
    """One line of the table.

    Attributes:
        use: "train" or "held out".
        file: Path in its package.
        author, licence: Words of the package about it.
    """

    use: str
    file: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        return Path(self.file).stem


def photographs() -> tuple[Photograph, ...]:
    """The table."""
    with TABLE.open(encoding="utf-8", newline="") as lines:
        return tuple(Photograph(**row) for row in csv.DictReader(lines, delimiter="\t"))


def lay(photograph: Photograph, sources: Sequence[Path], output: Path) -> Path:
    """Write one of them.

    Raises:
        FileNotFoundError: None of the sources has it.
    """
    found = [path for source in sources if (path := source / photograph.file).is_file()]
    if not found:
        raise FileNotFoundError(f"no {photograph.file} in {', '.join(map(str, sources))}")
    picture = Image.open(found[0])
    if min(picture.size) > 2.5 * SHORTER_SIDE:
        picture.draft("RGB", (picture.width // 2, picture.height // 2))  # decodes JPEG at half the size
    picture = picture.convert("RGB")
    shrink = min(1.0, SHORTER_SIDE / min(picture.size))
    if shrink < 1:
        size = (round(picture.width * shrink), round(picture.height * shrink))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    target = output / photograph.use.replace(" ", "_") / f"{photograph.name}.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target, quality=QUALITY, subsampling=0)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    for photograph in photographs():
        print(lay(photograph, args.sources, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
