"""Losses on decoded pictures, all (prediction, target) -> scalar tensor on (batch, 3, height, width) in [-1, 1]."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_msssim import MS_SSIM
from torch import Tensor

from lssgen.errors import TrainingError
from lssgen.training.config import ImageLossName

ImageLoss = Callable[[Tensor, Tensor], Tensor]

MS_SSIM_SHARE = 0.2
"""Weight of 1 - MS-SSIM beside L1: both pull a latent about equally hard then, in the spaces that we ship for."""

MS_SSIM_HALVINGS = 4
MS_SSIM_WINDOWS = (11, 9, 7, 5, 3)
ALEXNET = "alexnet-owt-7be5be79.pth"


def image_loss(name: ImageLossName, *, side_px: int, device: torch.device) -> ImageLoss:
    """Build the loss of that name.

    Args:
        side_px: Shorter side of the pictures it will see.

    Raises:
        TrainingError: The pictures are too small for it, or its library or weights are not here.
    """
    return _LOSSES[name](side_px, device)


def _none(side_px: int, device: torch.device) -> ImageLoss:  # noqa: ARG001
    return lambda prediction, target: prediction.new_zeros(())  # noqa: ARG005


def _l1(side_px: int, device: torch.device) -> ImageLoss:  # noqa: ARG001
    return F.l1_loss


def _ms_ssim(side_px: int, device: torch.device) -> ImageLoss:
    """1 - MS-SSIM, with the largest window that the four halvings of the picture leave room for."""
    for window in MS_SSIM_WINDOWS:
        if side_px > (window - 1) * 2**MS_SSIM_HALVINGS:  # pytorch_msssim asserts this much
            similarity = MS_SSIM(data_range=1.0, win_size=window, channel=3).to(device)
            return lambda prediction, target: 1 - similarity(_unit(prediction), _unit(target))
    smallest = (MS_SSIM_WINDOWS[-1] - 1) * 2**MS_SSIM_HALVINGS
    raise TrainingError(
        f"ms-ssim needs pictures of more than {smallest} px, but the crop's shorter side has {side_px}; "
        "give a larger --crop or another --image-loss"
    )


def _mixed(side_px: int, device: torch.device) -> ImageLoss:
    """L1, which keeps colours, and MS-SSIM, which keeps structure."""
    unlike = _ms_ssim(side_px, device)
    return lambda prediction, target: F.l1_loss(prediction, target) + MS_SSIM_SHARE * unlike(prediction, target)


def _lpips(side_px: int, device: torch.device) -> ImageLoss:  # noqa: ARG001
    """LPIPS on AlexNet features, the published recipe's loss."""
    try:
        lpips: Any = import_module("lpips")
    except ImportError as error:
        raise TrainingError(
            "the lpips loss needs the package of that name (pip install lpips); "
            "--image-loss l1 and ms-ssim need nothing more"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not weights.exists():
        raise TrainingError(
            f"the lpips loss needs AlexNet's weights at {weights}; fetch them once from "
            f"https://download.pytorch.org/models/{ALEXNET}, or use --image-loss l1 or ms-ssim"
        )
    distance = lpips.LPIPS(net="alex", verbose=False).to(device).requires_grad_(False)
    # Clamped as published: LPIPS was trained on pictures, which have no values beyond.
    return lambda prediction, target: distance(prediction.clamp(-1, 1), target).mean()


def _unit(picture: Tensor) -> Tensor:
    return (picture.clamp(-1, 1) + 1) / 2


_LOSSES: Mapping[ImageLossName, Callable[[int, torch.device], ImageLoss]] = {
    "none": _none,
    "l1": _l1,
    "ms-ssim": _ms_ssim,
    "mixed": _mixed,
    "lpips": _lpips,
}
