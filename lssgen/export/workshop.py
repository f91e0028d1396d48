"""One graph of a bundle: known by its key, written once, probed at every resolution."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import torch
from torch import nn

from lssgen.bundle import Graph, Precision, Probe
from lssgen.errors import ProbeError
from lssgen.export.checkpoint import Checkpoint, Parts
from lssgen.export.config import Probing, Resolution
from lssgen.export.on_demand import weights_on_demand
from lssgen.export.probe import probe_graph
from lssgen.export.samples import axis_sizes, sample_inputs, used_axes
from lssgen.export.store import Store
from lssgen.export.writer import OPSET, write_graph
from lssgen.models.nets.recipe import Recipe

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "diffusers", "transformers")
SOURCES = (
    "lssgen.export.checkpoint",
    "lssgen.export.data",
    "lssgen.export.writer",
    "lssgen.export.passes",
    "lssgen.export.weights",
    "lssgen.models.nets",
)
"""Modules whose text decides what a graph looks like; a package stands for all that is in it."""

ANY_CELLS = (16, 24)
"""A latent's size, where any would do: unlike axes have unlike sizes, and all VAEs and patches divide it."""

STAGES_BYTES = 1 << 30
"""Weights in the checkpoint up to which "auto" probes at every stage's size; a CPU would compute for hours at those of
FLUX."""

Say = Callable[[str], None]
"""Takes one line for the user."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where graphs are made: from what, at which sizes, into which folder.

    Attributes:
        checkpoint: The weights.
        cell_px: Pixels along one side of a latent cell.
        resolutions: To probe, smallest first.
        branches: Guidance branches to probe with.
        token_axes: Sizes of the axes that count tokens.
        precision: Asked for.
        probe: At which sizes graphs are compared with torch.
        threads: For the probes; 0: as many as there are.
        store: The bundle's folder.
        say: For the user.
        notes: For the manifest; grows.
    """

    checkpoint: Checkpoint
    cell_px: int
    resolutions: tuple[Resolution, ...]
    branches: int
    token_axes: Mapping[str, int]
    precision: Precision
    probe: Probing
    threads: int
    store: Store
    say: Say
    notes: list[str] = field(default_factory=list[str])

    def graph(self, recipe: Recipe) -> Graph:
        """Make a graph, or find it whole; in float32 if it does not hold up in the precision asked for.

        Raises:
            ModelError: The checkpoint does not fit.
            ExportError: The graph cannot be made, or does not pass its probe in float32 either.
        """
        precision = "fp32" if recipe.precise else self.precision
        if recipe.overflows and precision == "fp16":
            precision = "fp32"
            self._note(f"{recipe.name} is kept in fp32: the checkpoint says that its numbers are too large for fp16.")
        key = self.key(recipe, precision)
        why = next((graph.why for graph in self.store.known.values() if graph.stands_for == key), "")
        if not why:
            try:
                return self._graph(recipe, precision)
            except ProbeError as error:
                if precision == "fp32":
                    raise
                why = f"{recipe.name} is kept in fp32: in {precision}, {error}."
        self._note(why)
        return self._graph(recipe, "fp32", stands_for=key, why=why)

    def _note(self, note: str) -> None:
        self.say(note)
        self.notes.append(note)

    def _graph(self, recipe: Recipe, precision: Precision, *, stands_for: str = "", why: str = "") -> Graph:
        start = time.perf_counter()
        key = self.key(recipe, precision)
        graph = self.store.find(key)
        made = "written" if graph is None else "was there"
        graph = self._made(recipe, precision, key) if graph is None else self._probed(recipe, precision, graph)
        if (stands_for, why) != (graph.stands_for, graph.why):
            graph = replace(graph, stands_for=stands_for, why=why)
            self.store.keep(graph)
        worst = max((probe.error for probe in graph.probes), default=None)
        proof = "not compared with torch" if worst is None else f"within {worst:.1e} of torch"
        self.say(f"{recipe.name:18} {precision}  {made} in {time.perf_counter() - start:.1f} s, {proof}")
        return graph

    def _made(self, recipe: Recipe, precision: Precision, key: str) -> Graph:
        self._patience(recipe, "tracing, and writing {} of weights")
        module = self.module(recipe, precision)
        weights = self.checkpoint.weights(recipe.components)
        sizes = axis_sizes(*ANY_CELLS, self.cell_px, batch=3, branches=2, tokens=self.token_axes)
        with self.store.draft(recipe.name) as draft:
            written = write_graph(
                module,
                sample_inputs(recipe, sizes),
                [port.name for port in recipe.outputs],
                {port.name: port.shape for port in (*recipe.inputs, *recipe.outputs)},
                draft / f"{recipe.name}-{key[:12]}.onnx",
                weights,
            )
            graph = Graph(
                file=written.files[0].name,
                data=tuple(path.name for path in written.files[1:]),
                sha256=written.sha256,
                key=key,
                precision=precision,
                inputs=written.inputs,
                outputs=written.outputs,
                probes=self._probes(recipe, precision, written.files[0], self.probe_axes(recipe)),
            )
            self.store.keep(graph, draft)
        return graph

    def _probed(self, recipe: Recipe, precision: Precision, graph: Graph) -> Graph:
        """A graph that was there, with the probes that are wanted now."""
        wanted = self.probe_axes(recipe)
        missing = [axes for axes in wanted if axes not in [probe.axes for probe in graph.probes]]
        if not missing:
            return graph
        new = self._probes(recipe, precision, self.store.folder / graph.file, missing)
        graph = replace(graph, probes=(*graph.probes, *new))
        self.store.keep(graph)
        return graph

    def _probes(
        self, recipe: Recipe, precision: Precision, path: Path, axes: Sequence[Mapping[str, int]]
    ) -> tuple[Probe, ...]:
        """Compare the graph with its module, whose weights are read layer by layer for that."""
        if not axes:
            return ()
        self._patience(recipe, "comparing with torch, reading {} of weights layer by layer")
        samples = [(sizes, sample_inputs(recipe, {**self.token_axes, **sizes}, seed=1)) for sizes in axes]
        weights = self.checkpoint.weights(recipe.components)
        with weights_on_demand(self.module(recipe, "fp32"), weights) as exact:
            return probe_graph(recipe.name, path, exact, samples, recipe.outputs, precision, self.threads)

    def _patience(self, recipe: Recipe, doing: str) -> None:
        """Say what will take minutes."""
        stored = self._stored(recipe)
        if stored > STAGES_BYTES:
            self.say(f"{recipe.name:18} {doing.format(f'{stored / 1e9:.1f} GB')}")

    def _stored(self, recipe: Recipe) -> int:
        """Bytes of the checkpoint that a graph is made of."""
        return sum(tensor.nbytes for tensor in self.checkpoint.weights(recipe.components).stored.values())

    def module(self, recipe: Recipe, precision: Precision) -> nn.Module:
        return recipe.build(Parts(self.checkpoint, DTYPES[precision])).eval().requires_grad_(False)

    def probe_axes(self, recipe: Recipe) -> list[dict[str, int]]:
        """Sizes to probe at, as `probe` says; the smallest stage with a batch of two."""
        probing = self.probe
        if probing == "auto":
            probing = "stages" if self._stored(recipe) <= STAGES_BYTES else "small"
        if probing == "none":
            return []
        # A transition is probed from the stages that it starts from.
        grows = any("next_height" in port.shape for port in recipe.inputs)
        resolutions = (self.resolutions[:-1] or self.resolutions) if grows else self.resolutions
        cells = [(height // self.cell_px, width // self.cell_px) for height, width in resolutions]
        found: list[dict[str, int]] = []
        for index, (height, width) in enumerate(cells if probing == "stages" else [ANY_CELLS]):
            batch = 1 if index else 2
            sizes = axis_sizes(height, width, self.cell_px, batch=batch, branches=self.branches, tokens=self.token_axes)
            used = used_axes((*recipe.inputs, *recipe.outputs), sizes)
            if {**used, "batch": 0} not in [{**axes, "batch": 0} for axes in found]:  # text has no resolution
                found.append(used)
        return found

    def key(self, recipe: Recipe, precision: Precision) -> str:
        """Hash of everything that decides the graph's bytes."""
        made_from = {
            "graph": recipe.name,
            "ports": [str(port) for port in (*recipe.inputs, *recipe.outputs)],
            "settings": recipe.settings,
            "precision": precision,
            "opset": OPSET,
            "sources": {name: _source_hash(name) for name in SOURCES},
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
            "configs": {name: dict(self.checkpoint.config(name)) for name in recipe.components},
            "weights": {name: self.checkpoint.sha256(name) for name in recipe.components},
            "deltas": self.checkpoint.deltas_sha256(recipe.components),
        }
        return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _source_hash(module: str) -> str:
    """Of a module's text, or of all modules in a package."""
    file = import_module(module).__file__
    assert file is not None
    path = Path(file)
    files = sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
