"""A tiny checkpoint, the bundle that export makes of it, and the diffusers pipeline that reads it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx_ir as ir
import torch
from factory import tiny_upsampler
from torch import Tensor

import lssgen
from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.manifest import Precision
from lssgen.models.configs import read_json
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.results import Result
from lssgen.runtime.text import PromptWarning, TextEncoder

PROMPT, NEGATIVE = "the red circle", "a big ring"

CLOSE = 1e-4
"""Relative L2. float32 in other orders of summation, carried through a dozen evaluations; measured below 1e-5."""

INDEXING = {"GatherND", "GatherElements", "ScatterND", "ScatterElements", "SplitToSequence", "SequenceAt", "Loop", "If"}
"""Nodes of index arithmetic and control flow, which engines refuse, or neither fuse nor fold."""

ONE_PASS = 1e-5
"""The same, for one evaluation of a text encoder."""

SIZE: dict[str, Any] = {"height": 64, "width": 96, "base_height": 64, "base_width": 96}
SINGLE: dict[str, Any] = SIZE | {"min_resolution": 64, "num_inference_steps": 4}
TWO: dict[str, Any] = SIZE | {"min_resolution": 32, "num_inference_steps": 5}
THREE: dict[str, Any] = SIZE | {"min_resolution": 16, "num_inference_steps": 12, "shorten": True}
GUIDED: dict[str, Any] = {"guidance_scale": 3.0}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a family's oracle tests share."""

    folder: Path
    upsampler: Path
    bundle: Bundle

    @cached_property
    def pipe(self) -> Any:
        """The checkpoint in diffusers."""
        name = read_json(self.folder / "model_index.json")["_class_name"]
        pipe = getattr(diffusers, name).from_pretrained(self.folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def run(self) -> Pipeline:
        """The bundle in the runtime."""
        return lssgen.load(self.bundle.folder, threads=1)

    def scheduled(self, scheduler: Any) -> Pipeline:
        """The same graphs, planned for another diffusers scheduler."""
        facts = replace(
            self.bundle.manifest.facts, scheduler=type(scheduler).__name__, scheduler_config=dict(scheduler.config)
        )
        bundle = Bundle(self.bundle.folder, replace(self.bundle.manifest, facts=facts))
        return Pipeline(bundle, self.run.backend)

    def text(self, prompt: str) -> dict[str, Tensor]:
        """What the runtime makes of a prompt, with a batch axis of one."""
        backend = self.run.backend
        encoder = TextEncoder(self.bundle, backend)
        engine = backend.open(self.bundle, Demand(graphs=("text",)))["text"]
        states = encoder.encode(engine, prompt, encoder.lengths(prompt))
        return {port: torch.from_numpy(np.array(value))[None] for port, value in states.items()}


def exported(
    make: Callable[[Path], Path],
    root: Path,
    *,
    precision: Precision = "fp32",
    with_upsampler: bool = True,
    **wishes: Any,
) -> Exported:
    """Make a checkpoint with `make`, and its bundle, below `root`; `wishes` as of `ExportConfig`."""
    folder, upsampler = make(root / "checkpoint"), tiny_upsampler(root / "upsampler")
    config = ExportConfig(
        model=str(folder),
        output=root / "bundle",
        resolutions=((32, 48), (64, 96)),
        precision=precision,
        upsampler=upsampler if with_upsampler else None,
        threads=1,
        **wishes,
    )
    return Exported(folder=folder, upsampler=upsampler, bundle=export(config))


def painted(pipeline: Pipeline, options: dict[str, Any], seeds: tuple[int, ...], negative: str | None = None) -> Result:
    """A run with the defaults of `loop.staged`; the negative prompt may be of no use to it."""
    given: Any = {"scaling_space": "latent", "guidance_scale": 1.0, "shorten": False} | options
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the negative prompt has no effect", PromptWarning)
        return pipeline(
            PROMPT, negative_prompt=negative, seed=seeds[0], num_images=len(seeds), batch=len(seeds), **given
        )


def latents(result: Result) -> Tensor:
    """(B, C, h, w)."""
    return torch.from_numpy(np.stack([picture.latent for picture in result.pictures]))


def operators(exported: Exported, graph: str) -> set[str]:
    """Kinds of nodes in a graph."""
    model = ir.load(exported.bundle.path(exported.bundle.manifest.graphs[graph].file))
    return {node.op_type for node in model.graph.all_nodes()}


def grey_levels(image: Any, picture: Tensor) -> int:
    """Largest difference between a picture of the runtime and (3, height, width) of a diffusers VAE, about -1 to 1."""
    wanted = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    return int(np.abs(np.asarray(image, np.int64) - wanted.astype(np.int64)).max())
