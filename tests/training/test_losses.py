import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lssgen.errors import TrainingError
from lssgen.training.config import ImageLossName
from lssgen.training.losses import image_loss

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["l1", "ms-ssim"])
def test_the_loss_is_zero_for_the_target_and_grows_with_the_error(name: ImageLossName) -> None:
    loss, target = image_loss(name, side_px=64, device=CPU), torch.rand(2, 3, 64, 64) * 2 - 1
    noise = torch.randn_like(target)
    near, far = loss(target + 0.05 * noise, target), loss(target + 0.3 * noise, target)
    assert loss(target, target) == pytest.approx(0, abs=1e-5)  # SSIM is a quotient of equal sums
    assert 0 < near < far


@pytest.mark.parametrize("side", [33, 64, 65, 96, 97, 160, 161])
def test_ms_ssim_takes_every_size_above_its_smallest(side: int) -> None:
    picture = torch.rand(1, 3, side, side)
    assert image_loss("ms-ssim", side_px=side, device=CPU)(picture, picture).isfinite()


def test_ms_ssim_refuses_pictures_that_it_cannot_halve_four_times() -> None:
    with pytest.raises(TrainingError, match=r"ms-ssim needs pictures of more than 32 px, but .* has 32"):
        image_loss("ms-ssim", side_px=32, device=CPU)


def test_lpips_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(TrainingError, match="pip install lpips"):
        image_loss("lpips", side_px=64, device=CPU)


def test_lpips_says_which_weights_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lpips", ModuleType("lpips"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(TrainingError, match=r"needs AlexNet's weights at .*alexnet-owt"):
        image_loss("lpips", side_px=64, device=CPU)
