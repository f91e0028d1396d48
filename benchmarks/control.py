"""A ControlNet in the step's graph, beside one that is a graph of its own and hands the step what it adds.

    python benchmarks/control.py [--width 128] [--sizes 32,64] [--turns 7] [--threads 2] [--output control.json]
    python benchmarks/control.py --sizes-only

The networks have the layout of Stable Diffusion 1.5 and random weights, with `--width` in the place of its 320, and two
guidance branches. Timed, in turn, on ONNX Runtime's CPU kernels, fp32: the UNet with the ControlNet inside; the UNet
that takes residuals; the ControlNet that gives them; and the UNet alone, which is what a step could be where the
control picture is off. `--sizes-only` prints how much the residuals of published networks are, and times nothing.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from lssgen.models.nets.unet import UnetStep
from lssgen.models.nets.unet_control import prepared, scaled
from lssgen.ort import ort

BRANCHES, TEXT, CELL = 2, 77, 8

PUBLISHED: Mapping[str, tuple[tuple[int, ...], int, int]] = {
    "SD 1.5": ((320, 640, 1280, 1280), 2, 512),
    "SDXL": ((320, 640, 1280), 2, 1024),
}
"""Widths of a UNet's levels, layers of each, and the size in pixels that it was made for."""


def residual_shapes(widths: Sequence[int], layers: int, side: int) -> list[tuple[int, int]]:
    """Channels and cells of every residual: those of the skip connections, and the middle's."""
    found = [(widths[0], side * side)]
    for level, width in enumerate(widths):
        found += [(width, (side // 2**level) ** 2)] * layers
        if level < len(widths) - 1:
            found.append((width, (side // 2 ** (level + 1)) ** 2))
    return [*found, found[-1]]


def sizes() -> dict[str, dict[str, float]]:
    """Numbers and megabytes of residuals for a guided picture."""
    report: dict[str, dict[str, float]] = {}
    for name, (widths, layers, px) in PUBLISHED.items():
        count = BRANCHES * sum(width * cells for width, cells in residual_shapes(widths, layers, px // CELL))
        report[name] = {"pixels": px, "numbers": count, "MB in fp32": count * 4 / 1e6, "MB in fp16": count * 2 / 1e6}
    return report


class Networks(nn.Module):
    """A UNet and its ControlNet, as the step's graph has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        common: dict[str, Any] = {
            "block_out_channels": (width, 2 * width, 4 * width, 4 * width), "cross_attention_dim": 768,
            "attention_head_dim": 8,
        }  # fmt: skip
        self.step = UnetStep(UNet2DConditionModel(sample_size=64, **common))
        self.controlnet = prepared(ControlNetModel(**common))
        for parameter in self.controlnet.parameters():
            if not parameter.any():  # before training a ControlNet adds zeros, which would hide a difference
                nn.init.normal_(parameter, std=0.02)

    def residuals(self, x: Tensor, label: Tensor, text: Tensor, cells: Tensor) -> tuple[list[Tensor], Tensor]:
        made = self.controlnet(x, label, text, None, cells, label.new_zeros((len(x), 0)), BRANCHES)
        return scaled(made, torch.full((1, 1, 1, 1), 0.8))


class Fused(Networks):
    def forward(self, x: Tensor, label: Tensor, text: Tensor, cells: Tensor) -> Tensor:
        return self.step.predict(x, label, text, None, None, self.residuals(x, label, text, cells))


class Control(Networks):
    def forward(self, x: Tensor, label: Tensor, text: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
        down, middle = self.residuals(x, label, text, cells)
        return *down, middle


class Taking(Networks):
    def forward(self, x: Tensor, label: Tensor, text: Tensor, more: tuple[Tensor, ...]) -> Tensor:
        return self.step.predict(x, label, text, None, None, (list(more[:-1]), more[-1]))


class Alone(Networks):
    def forward(self, x: Tensor, label: Tensor, text: Tensor) -> Tensor:
        return self.step.predict(x, label, text, None, None)


class Bound:
    """A graph, and its inputs and outputs where it computes."""

    def __init__(self, path: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()

    def feed(self, given: Sequence[Any]) -> None:
        for port, value in zip(self.session.get_inputs(), given, strict=True):
            self.binding.bind_ortvalue_input(port.name, value)
        for port in self.session.get_outputs():
            self.binding.bind_output(port.name)

    def run(self) -> list[Any]:
        self.session.run_with_iobinding(self.binding)
        return self.binding.get_outputs()


def exported(module: nn.Module, inputs: tuple[Any, ...], path: Path) -> None:
    module.eval()
    with torch.no_grad():
        made = torch.onnx.export(module, inputs, dynamo=True, opset_version=23, verbose=False)
    assert made is not None
    made.save(str(path), external_data=True)


def measured(width: int, side: int, threads: int, turns: int, folder: Path) -> dict[str, Any]:
    """Seconds of the four graphs at a latent's side, all turns."""
    torch.manual_seed(0)
    x, label = torch.randn(BRANCHES, 4, side, side), torch.full((BRANCHES,), 500.0)
    text, cells = torch.randn(BRANCHES, TEXT, 768), torch.randn(BRANCHES, 3 * CELL * CELL, side, side)
    weights = Fused(width).state_dict()
    graphs: dict[str, Bound] = {}
    residuals: tuple[Tensor, ...] = ()
    for name, cls in (("fused", Fused), ("control", Control), ("taking", Taking), ("alone", Alone)):
        module = cls(width)
        module.load_state_dict(weights)
        inputs: tuple[Any, ...] = (x, label, text, cells)
        if name == "control":
            with torch.no_grad():
                residuals = module(*inputs)
        if name in ("taking", "alone"):
            inputs = (x, label, text, residuals) if name == "taking" else (x, label, text)
        path = folder / f"{name}-{side}.onnx"
        exported(module, inputs, path)
        graphs[name] = Bound(path, threads)
        flat = [*inputs[:3], *(residuals if name == "taking" else inputs[3:])]
        graphs[name].feed([ort.OrtValue.ortvalue_from_numpy(value.numpy()) for value in flat])
    times: dict[str, list[float]] = {name: [] for name in graphs}
    came = {name: graph.run() for name, graph in graphs.items()}  # the first run of each makes its buffers
    ours, theirs = (came[name][0].numpy() for name in ("fused", "taking"))
    for _ in range(turns):
        for name, graph in graphs.items():
            began = time.perf_counter()
            graph.run()
            times[name].append(time.perf_counter() - began)
    median = {name: statistics.median(each) for name, each in times.items()}
    return {
        "latent": side,
        "seconds": times,
        "residual_MB": sum(one.numel() for one in residuals) * 4 / 1e6,
        "difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        "two_graphs_over_fused": (median["control"] + median["taking"]) / median["fused"],
        "alone_over_fused": median["alone"] / median["fused"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--sizes", default="32,64")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes-only", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"residuals": sizes()}
    if not args.sizes_only:
        report["conditions"] = {
            "machine": f"{os.cpu_count()} x {platform.machine()}", "threads": args.threads, "precision": "fp32",
            "width": args.width, "branches": BRANCHES, "turns": args.turns,
            **{name: metadata.version(name) for name in ("onnxruntime", "torch", "diffusers")},
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            report["runs"] = [
                measured(args.width, int(side), args.threads, args.turns, Path(folder))
                for side in args.sizes.split(",")
            ]
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
