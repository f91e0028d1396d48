"""An engine of a transition by this package's own kind of upsampler, in full size, built without a GPU."""

from pathlib import Path

import pytest
import torch
from machine import compile_here

from lssgen.engines.demand import Extent, Profile, fixed
from lssgen.engines.trt.job import Job
from lssgen.engines.trt.progress import quiet
from lssgen.export.weights import open_weights
from lssgen.export.writer import Axes, write_graph
from lssgen.models.nets.local_upsampler import LocalLatentUpSampler, local_config
from lssgen.models.nets.transition import ResnetTransition

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
pytestmark = pytest.mark.slow  # an export and a build take a minute of one core

LARGE = ("batch", 16, "next_height", "next_width")
AXES: Axes = {
    "latent": ("batch", 16, "height", "width"), "noise": LARGE, "mix": ("batch", 2), "next_latent": LARGE,
}  # fmt: skip


def test_one_engine_doubles_latents_of_many_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = ResnetTransition(LocalLatentUpSampler(local_config(16)).eval().requires_grad_(False))
    inputs = {"latent": torch.randn(3, 16, 8, 12), "noise": torch.randn(3, 16, 16, 24), "mix": torch.rand(3, 2)}
    path = tmp_path / "transition_resnet.onnx"
    written = write_graph(module, inputs, ["next_latent"], AXES, path, open_weights({}))
    side, double = Extent(32, 64, 128), Extent(64, 128, 256)
    profile = Profile({"batch": fixed(1), "height": side, "width": side, "next_height": double, "next_width": double})
    job = Job(
        flavour="tensorrt-rtx", name="transition_resnet", onnx=path, inputs=written.inputs, profiles=(profile,),
        targets=("sm89",),
    )  # fmt: skip
    facts = compile_here(job, tmp_path / "plan", quiet)
    assert (tmp_path / "plan").stat().st_size > 1_500_000  # 433 k weights in float32
    assert facts.unfused == ()
