"""How well latents are doubled, on photographs that no training saw, in real latent spaces; and what it costs.

    python -m benchmarks.upsamplers --photographs DIR --weights DIR --upsamplers DIR --output DIR [--device cuda]

Photographs are shrunk to 1024 px where they are larger, and cut to a square; smaller ones are cut to whole cells. Each
is halved (bicubic, antialiased), encoded by the small autoencoder of the space, and doubled by every operator. `error`
is the energy of the difference to the latent of the photograph itself, over the energy of that latent; PSNR and SSIM
are those of the decoded picture against the photograph. Three more numbers say what a square error does not:

- `cast`: mean distance of the colour of 64 x 64 px blocks to those of the decoded true latent, in grey levels of 255;
- `detail`: energy of the finest details (differences of neighbouring pixels) over that of the decoded true latent:
  below 1 is blur, above it is noise or a mosaic;
- `grid`: energy at the frequencies of a grid of 4 px over that at the frequencies beside them, in the parts that the
  sheet shows: about 0.8 in photographs, above 1 where decoders paint a mosaic.

A ratio of errors to that of bilinear, in the same photographs, is all that can be compared across sets.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median

import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_msssim import ssim
from torch import Tensor

from lssgen.images import read_picture
from lssgen.models.nets.latent_upsampler import LatentUpSampler, published_config
from lssgen.models.nets.upsamplers import load_upsampler
from lssgen.training.autoencoder import Autoencoder, in_space, load_autoencoder
from lssgen.training.pictures import SUFFIXES, tensor_of, to_range
from lssgen.training.report import CAPTION_PX, GAP_PX, contact_sheet

TINY = {"flux": "taef1", "sd3": "taesd3", "sdxl": "taesdxl", "sd": "taesd", "flux2": "taef2"}
"""Name of the small autoencoder of every space."""

SIDE, CELLS, SHOWN, GRID = 1024, 16, 256, 4
"""Pixels of a large photograph's side, of a low cell's, of the part that the sheet shows, and of a mosaic's stones."""

OURS, TRUE, PHOTO = "ours", "true latent", "photograph"
Double = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came out for one photograph and one operator; see the module's docstring."""

    error: float
    psnr_db: float
    ssim: float
    cast: float
    detail: float


def interpolated(mode: str) -> Double:
    return lambda low: F.interpolate(low, scale_factor=2, mode=mode, align_corners=False)


def dct_embedded(low: Tensor) -> Tensor:
    """The cosine transform of (batch, C, h, w) in the corner of one of twice the size, which is zero elsewhere."""
    down, across = (_cosines(side, low) for side in low.shape[-2:])
    up, along = (_cosines(2 * side, low)[:side] for side in low.shape[-2:])
    return 2 * up.T @ (down @ low @ across.T) @ along  # orthonormal coefficients grow with the side


def _cosines(side: int, like: Tensor) -> Tensor:
    """Orthonormal type-II cosine transform, (side, side)."""
    n = torch.arange(side, dtype=torch.float64)
    table = torch.cos(torch.pi * (2 * n + 1) * n[:, None] / (2 * side)) * (2 / side) ** 0.5
    table[0] /= 2**0.5
    return table.to(like)


def through_pixels(autoencoder: Autoencoder) -> Double:
    """As the transition through pixels: decode, bicubic, encode."""
    enlarge = interpolated("bicubic")
    return lambda low: autoencoder.encode(enlarge(autoencoder.decode(low))).mean


def operators(autoencoder: Autoencoder, upsampler: Path, device: torch.device) -> Mapping[str, Double]:
    return {
        "bilinear": interpolated("bilinear"),
        "bicubic": interpolated("bicubic"),
        "DCT embedding": dct_embedded,
        "pixel path": through_pixels(autoencoder),
        OURS: load_upsampler(upsampler).to(device),
    }


def photographs(folder: Path) -> Mapping[str, Tensor]:
    """uint8 (3, height, width) by name, both sides multiples of `CELLS` and at most `SIDE`."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return {path.stem: tensor_of(_cut(read_picture(path))) for path in paths}


def _cut(picture: Image.Image) -> Image.Image:
    shrink = min(1.0, SIDE / min(picture.size))
    if shrink < 1:
        size = tuple(round(side * shrink) for side in picture.size)
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    width, height = (min(SIDE, side) // CELLS * CELLS for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def halved(photo: Tensor) -> Tensor:
    """uint8 (3, height, width) -> (3, height / 2, width / 2), as `lssgen train-upsampler` halves."""
    height, width = photo.shape[1:]
    small = Image.fromarray(photo.permute(1, 2, 0).numpy()).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return tensor_of(small)


def judged(latent: Tensor, high: Tensor, picture: Tensor, best: Tensor, photo: Tensor) -> Found:
    """One operator on one photograph.

    Args:
        latent, high: What it made, and the photograph's own latent, (1, C, h, w).
        picture, best, photo: Both decoded, and the photograph, (1, 3, 8 h, 8 w) in [0, 1].
    """
    blocks = (F.avg_pool2d(picture, 64, ceil_mode=True) - F.avg_pool2d(best, 64, ceil_mode=True)).square().mean(1)
    return Found(
        error=float((latent - high).square().sum() / high.square().sum()),
        psnr_db=float(-10 * (picture - photo).square().mean().log10()),
        ssim=float(ssim(picture, photo, data_range=1.0)),
        cast=float(blocks.sqrt().mean() * 255),
        detail=_fine(picture) / _fine(best),
    )


def _fine(picture: Tensor) -> float:
    return float(picture.diff(dim=-1).square().mean() + picture.diff(dim=-2).square().mean())


def grids(sheet: Image.Image, ways: Sequence[str]) -> Mapping[str, float]:
    """`grid` of every column of a sheet, mean over its rows and both directions."""
    pixels = tensor_of(sheet).float() / 255
    step, found = SHOWN + GAP_PX, {}
    for column, way in enumerate(ways):
        strip = pixels[:, CAPTION_PX:, column * step : column * step + SHOWN]
        parts = [strip[:, top : top + SHOWN] for top in range(0, strip.shape[1], step)]
        found[way] = fmean(_grid(part) + _grid(part.transpose(-1, -2)) for part in parts) / 2
    return found


def _grid(part: Tensor) -> float:
    energy = torch.fft.rfft(part - part.mean((-1, -2), keepdim=True)).abs().square().mean((0, 1))
    at = torch.arange(SHOWN // GRID, SHOWN // 2 + 1, SHOWN // GRID)
    beside = torch.cat([at - 2, at[:-1] + 2])  # beyond the last, there are no frequencies
    return float(energy[at].mean() / energy[beside].mean())


@torch.no_grad()
def judge(
    autoencoder: Autoencoder, ways: Mapping[str, Double], photos: Mapping[str, Tensor], device: torch.device
) -> tuple[Mapping[str, Mapping[str, Found]], Image.Image]:
    """Every photograph by every operator, and a sheet on which the liveliest part of each is seen."""
    rows: dict[str, dict[str, Found]] = {name: {} for name in (*ways, TRUE)}
    columns: dict[str, list[Tensor]] = {name: [] for name in (*ways, TRUE, PHOTO)}
    for name, photo in photos.items():
        target = to_range(photo[None].to(device))
        low = autoencoder.encode(to_range(halved(photo)[None].to(device))).mean
        high = autoencoder.encode(target).mean
        unit = (target + 1) / 2
        best = _decoded(autoencoder, high)
        top, left = _liveliest(unit)
        for way, double in (*ways.items(), (TRUE, lambda _, high=high: high)):
            latent = double(low)
            picture = best if way == TRUE else _decoded(autoencoder, latent)
            rows[way][name] = judged(latent, high, picture, best, unit)
            columns[way].append(picture[0, :, top : top + SHOWN, left : left + SHOWN].cpu())
        columns[PHOTO].append(unit[0, :, top : top + SHOWN, left : left + SHOWN].cpu())
        print(f"{autoencoder.of} {name}: {rows[OURS][name]}", file=sys.stderr, flush=True)
    return rows, contact_sheet({way: torch.stack(parts) * 2 - 1 for way, parts in columns.items()})


def _decoded(autoencoder: Autoencoder, latent: Tensor) -> Tensor:
    return (autoencoder.decode(latent).clamp(-1, 1) + 1) / 2


def _liveliest(picture: Tensor) -> tuple[int, int]:
    """Top and left of the window of `SHOWN` px with the most detail, on a grid of 32 px."""
    fine = F.pad(picture.diff(dim=-1).square(), (0, 1)) + F.pad(picture.diff(dim=-2).square(), (0, 0, 0, 1))
    sums = F.avg_pool2d(fine.mean(1, keepdim=True), SHOWN, stride=32)[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return 32 * row, 32 * column


@torch.no_grad()
def milliseconds(ways: Mapping[str, Double], channels: int, device: torch.device, repeats: int) -> Mapping[str, float]:
    """Median time of every operator from 512 to 1024 px, in turn."""
    low = torch.randn(1, channels, SIDE // CELLS, SIDE // CELLS, generator=torch.Generator().manual_seed(0)).to(device)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, double in ways.items():
            seconds = _seconds(lambda double=double: double(low), device)
            if turn:  # the first one chooses kernels
                taken[name].append(seconds)
    return {name: 1000 * median(each) for name, each in taken.items()}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def conditions(device: torch.device, photos: Mapping[str, Tensor]) -> Mapping[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": name,
        "threads": torch.get_num_threads(),
        "precision": "fp32",
        "torch": torch.__version__,
        "photographs": {name: list(photo.shape[:0:-1]) for name, photo in photos.items()},
    }


def means(rows: Mapping[str, Mapping[str, Found]]) -> Mapping[str, Mapping[str, float]]:
    """Of every operator, over the photographs."""
    return {
        way: {key: fmean(asdict(one)[key] for one in found.values()) for key in Found.__slots__}
        for way, found in rows.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photographs", type=Path, help="folder of photographs that no training saw; none: times alone"
    )
    parser.add_argument("--weights", type=Path, required=True, help="folder of the small autoencoders' files")
    parser.add_argument("--upsamplers", type=Path, required=True, help="folder with an upsampler for each space")
    parser.add_argument("--output", type=Path, required=True, help="upsamplers.json and a sheet for each space")
    parser.add_argument("--spaces", nargs="*", default=list(TINY), choices=list(TINY))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=20, help="turns of the timing; 0: none")
    parser.add_argument("--sheets", action="store_true", help="only measure the grid again, on the sheets in --output")
    args = parser.parse_args(argv)
    if args.sheets:
        return measure_sheets(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is what is judged
    photos = photographs(args.photographs) if args.photographs else {}
    spaces: dict[str, object] = {}
    for space in args.spaces:
        spaces[space] = about(space, args, photos, device)
        found = {"conditions": conditions(device, photos), "spaces": spaces}
        (args.output / "upsamplers.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure_sheets(folder: Path) -> int:
    file = folder / "upsamplers.json"
    found = json.loads(file.read_text())
    for space, numbers in found["spaces"].items():
        numbers["grid"] = grids(Image.open(folder / f"{space}.jpg"), (*numbers["photographs"], PHOTO))
    file.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def about(space: str, args: argparse.Namespace, photos: Mapping[str, Tensor], device: torch.device) -> object:
    """All numbers of one space; its sheet is written."""
    (encoder,) = args.weights.glob(f"{TINY[space]}_encoder.*")
    autoencoder = in_space(load_autoencoder(str(encoder), device), "auto", str(encoder))
    ways = operators(autoencoder, args.upsamplers / space, device)
    rows: Mapping[str, Mapping[str, Found]] = {}
    if photos:
        rows, sheet = judge(autoencoder, ways, photos, device)
        sheet.save(args.output / f"{space}.jpg", quality=95, subsampling=0)
    published = LatentUpSampler(published_config(autoencoder.channels)).to(device).eval()
    timed = {**ways, "published shape": published}
    return {
        "means": means(rows),
        "photographs": {way: {name: asdict(one) for name, one in found.items()} for way, found in rows.items()},
        "grid": grids(Image.open(args.output / f"{space}.jpg"), (*rows, PHOTO)) if photos else {},
        "milliseconds": milliseconds(timed, autoencoder.channels, device, args.repeats) if args.repeats else {},
    }


if __name__ == "__main__":
    sys.exit(main())
