"""Write N drawn scenes as PNG files, for instance to train a latent upsampler on this model's own world."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scenes import caption, draw, random_scene


def main(folder: Path, count: int, side_px: int, seed: int) -> None:
    """Write 00000.png, 00001.png, ... and captions.txt, one caption a line, to `folder`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for number in range(count):
        scene = random_scene(rng)
        Image.fromarray(draw(scene, side_px)).save(folder / f"{number:05d}.png")
        captions.append(caption(scene))
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256, help="in px")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    main(args.folder, args.count, args.side, args.seed)
