"""Validation of an upsampler against the two obvious alternatives, as a table, as JSON and as a picture."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pytorch_msssim import ssim
from torch import Tensor
from torch.utils.data import DataLoader

from lssgen.durable import whole_file, write_whole
from lssgen.models.nets.upsamplers import AnyUpsampler
from lssgen.progress import Say
from lssgen.training.autoencoder import Autoencoder
from lssgen.training.pictures import CentreCrops, to_range
from lssgen.training.progress import followed

REPORT_JSON, REPORT_MD, SHEET_PNG = "report.json", "report.md", "contact_sheet.png"
SHEET_ROWS, CAPTION_PX, GAP_PX = 6, 16, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How well one way of doubling a latent does, over all validation pairs.

    Attributes:
        method: Name of the way.
        latent_mse: Mean square distance in model space to the encoding (posterior mean) of the high picture.
        relative_mse: The same over the variance of those encodings (within each channel, then averaged).
        psnr_db, ssim: Likeness of the decoded latent against the high picture itself, means over the pictures.
    """

    method: str
    latent_mse: float
    relative_mse: float
    psnr_db: float
    ssim: float


@dataclass(frozen=True, slots=True)
class Validation:
    """The table, and the contact sheet that goes with it."""

    rows: tuple[Row, ...]
    pairs: int
    sheet: Image.Image

    def row(self, method: str) -> Row:
        return next(row for row in self.rows if row.method == method)


UPSAMPLER, BICUBIC, PIXELS, CEILING = "upsampler", "bicubic on the latent", "decode, bicubic, encode", "true latent"
CAPTIONS = {BICUBIC: "bicubic", PIXELS: "pixel path", UPSAMPLER: "upsampler", CEILING: "target"}
"""Headings of their columns in the contact sheet; the last column shows the picture itself."""


@torch.no_grad()
def validate(
    model: AnyUpsampler, autoencoder: Autoencoder, crops: CentreCrops, device: torch.device, batch: int, say: Say
) -> Validation:
    """Double every validation latent in each way and compare with the encoding of the high picture.

    The true latent stands in the table as well: what the autoencoder itself loses, no upsampler can bring back.
    """
    ways: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
        BICUBIC: lambda low, _: F.interpolate(low, scale_factor=2, mode="bicubic", align_corners=False),
        PIXELS: lambda low, _: (
            autoencoder.encode(
                F.interpolate(autoencoder.decode(low), scale_factor=2, mode="bicubic", align_corners=False)
            ).mean
        ),
        UPSAMPLER: lambda low, _: model(low),
        CEILING: lambda _, high: high,
    }
    errors: dict[str, list[Tensor]] = {name: [] for name in ways}
    psnrs: dict[str, list[Tensor]] = {name: [] for name in ways}
    ssims: dict[str, list[Tensor]] = {name: [] for name in ways}
    highs: list[Tensor] = []
    sheet: dict[str, list[Tensor]] = {}
    # A generator of its own: DataLoader draws from the global one even where nothing is shuffled.
    loader = DataLoader(crops, batch_size=batch, generator=torch.Generator())
    with followed("validating: batch", total=len(loader), done=0, say=say) as tell:
        for low_pictures, high_pictures in loader:
            target = to_range(high_pictures.to(device))
            low = autoencoder.encode(to_range(low_pictures.to(device))).mean
            high = autoencoder.encode(target).mean
            highs.append(high.cpu())
            shown = {"low": F.interpolate(to_range(low_pictures), scale_factor=2, mode="nearest")}
            for name, double in ways.items():
                latent = double(low, high)
                picture = autoencoder.decode(latent).clamp(-1, 1)
                errors[name].append((latent - high).square().flatten(1).mean(1).cpu())
                # At most 100 dB: pictures without any difference would have no logarithm.
                square = ((picture - target) / 2).square().flatten(1).mean(1).clamp(min=1e-10)
                psnrs[name].append((-10 * square.log10()).cpu())
                ssims[name].append(ssim((picture + 1) / 2, (target + 1) / 2, data_range=1.0, size_average=False).cpu())
                shown[CAPTIONS[name]] = (picture if name != CEILING else target).cpu()
            for caption, pictures in shown.items():
                rows = sheet.setdefault(caption, [])
                rows.extend(pictures[: SHEET_ROWS - len(rows)])
            tell("")
    # Within channels: their means differ, and would make any error look small.
    variance = float(torch.cat(highs).transpose(0, 1).flatten(1).var(1).mean())
    rows = tuple(
        Row(
            method=name,
            latent_mse=_mean(errors[name]),
            relative_mse=_mean(errors[name]) / variance,
            psnr_db=_mean(psnrs[name]),
            ssim=_mean(ssims[name]),
        )
        for name in ways
    )
    return Validation(rows, len(crops), contact_sheet({caption: torch.stack(rows) for caption, rows in sheet.items()}))


def contact_sheet(columns: Mapping[str, Tensor]) -> Image.Image:
    """Pictures, (rows, 3, height, width) in [-1, 1] for every column, under the columns' names."""
    rows, _, height, width = next(iter(columns.values())).shape
    size = (len(columns) * (width + GAP_PX) - GAP_PX, CAPTION_PX + rows * (height + GAP_PX) - GAP_PX)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, pictures) in enumerate(columns.items()):
        left = number * (width + GAP_PX)
        draw.text((left + 2, 2), name, fill="black")
        for row, picture in enumerate(((pictures.clamp(-1, 1) + 1) * 127.5).round().byte()):
            top = CAPTION_PX + row * (height + GAP_PX)
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), (left, top))
    return sheet


def write_report(folder: Path, validation: Validation, conditions: Mapping[str, object]) -> None:
    """Write report.json, report.md and contact_sheet.png."""
    facts = {"conditions": dict(conditions), "pairs": validation.pairs, "rows": [asdict(r) for r in validation.rows]}
    write_json(folder / REPORT_JSON, facts)
    # A folder's name need not be UTF-8.
    write_whole(folder / REPORT_MD, markdown(validation, conditions).encode(errors="backslashreplace"))
    with whole_file(folder / SHEET_PNG) as draft:
        validation.sheet.save(draft, "PNG")


def write_json(path: Path, facts: Mapping[str, object]) -> None:
    """Write facts for programs and people."""
    write_whole(path, (json.dumps(facts, indent=2) + "\n").encode())


def markdown_table(validation: Validation) -> str:
    """The rows, as a Markdown table."""
    lines = [
        "| doubling by | latent MSE | of the variance | PSNR (dB) | SSIM |",
        "|---|---|---|---|---|",
        *(
            f"| {r.method} | {r.latent_mse:.4g} | {r.relative_mse:.2%} | {r.psnr_db:.2f} | {r.ssim:.4f} |"
            for r in validation.rows
        ),
    ]
    return "\n".join(lines)


def markdown(validation: Validation, conditions: Mapping[str, object]) -> str:
    """The table, what its numbers mean, and the conditions they were measured under."""
    return f"""# Validation of a latent upsampler

Centre crops of {validation.pairs} pictures that training did not see.

{markdown_table(validation)}

Latents in model space against the encoding of the high picture; decoded pictures against that picture itself.
"True latent" is that encoding, decoded: what the autoencoder alone loses.

| condition | value |
|---|---|
""" + "".join(f"| {name} | {value} |\n" for name, value in conditions.items())


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).mean())
