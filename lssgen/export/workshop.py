"""One graph of a bundle: known by its key, written once, probed at every resolution."""

import ast
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from lssgen.errors import ProbeError
from lssgen.export.checkpoint import Checkpoint, Parts
from lssgen.export.config import Probing, Resolution
from lssgen.export.memory import working_bytes
from lssgen.export.on_demand import weights_on_demand
from lssgen.export.probe import DIRECT_BYTES, probe_graph, torch_inputs
from lssgen.export.store import Store
from lssgen.export.writer import OPSET, write_graph
from lssgen.machine import free_memory
from lssgen.manifest import Graph, Precision, Probe
from lssgen.models.nets.recipe import Recipe
from lssgen.parity.samples import axis_sizes, used_axes

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "diffusers", "transformers")
WRITER = ("lssgen.export.checkpoint", "lssgen.export.writer", "lssgen.models.nets.slots")
"""Modules that write every graph; what they import counts too."""

ANY_CELLS = (16, 24)
"""A latent's size, where any would do: unlike axes have unlike sizes, and all VAEs and patches divide it."""

STAGES_BYTES = 1 << 30
"""Weights in the checkpoint up to which "auto" probes at every stage's size; a CPU would compute for hours at those of
FLUX."""

SHARE = 0.8
"""Part of the free memory that a probe may count on; other programs take some while it runs."""

SMALL_CELLS = 64 * 64
"""A latent up to which nobody asks how much memory a probe takes: 512 px, of published VAEs."""

Say = Callable[[str], None]
"""Takes one line for the user."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where graphs are made: from what, at which sizes, into which folder.

    Attributes:
        checkpoint: The weights.
        cell_px: Pixels along one side of a latent cell.
        resolutions: Stage sizes to probe, smallest first.
        branches: Guidance branches to probe with.
        token_axes: Sizes of the axes that count tokens.
        precision: Number format that was asked for.
        probe: Choice of sizes at which graphs are compared with torch.
        threads: CPU threads for the probes; 0: as many as there are.
        store: The bundle's folder.
        say: Function that tells the user a sentence.
        notes: Sentences for the manifest; grows.
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
        # It did not hold up in an earlier export: to find that out again would take as long.
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
        if graph is not None:  # its bytes are those that are wanted; what its ports are fed with may be new
            graph = replace(graph, runs=recipe.runs, axes=recipe.axes, feeds=recipe.feeds)
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
        # 3 and 2: unlike axes have unlike sizes, or the tracer might take one for the other.
        sizes = axis_sizes(*ANY_CELLS, self.cell_px, batch=3, branches=2, tokens=self.token_axes)
        with self.store.draft(recipe.name) as draft:
            written = write_graph(
                module,
                torch_inputs(recipe, sizes),
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
                runs=recipe.runs,
                axes=recipe.axes,
                feeds=recipe.feeds,
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
        # Another seed than the trace's: a number that was baked in would fit there.
        samples = [(sizes, torch_inputs(recipe, {**self.token_axes, **sizes}, seed=1)) for sizes in axes]
        weights = self.checkpoint.weights(recipe.components)
        with weights_on_demand(self.module(recipe, "fp32"), weights) as exact:
            return probe_graph(recipe.name, path, exact, samples, recipe.outputs, precision, self.threads)

    def _patience(self, recipe: Recipe, doing: str) -> None:
        """Say what will take minutes."""
        stored = self.stored_bytes(recipe)
        if stored > STAGES_BYTES:
            self.say(f"{recipe.name:18} {doing.format(f'{stored / 1e9:.1f} GB')}")

    def stored_bytes(self, recipe: Recipe) -> int:
        """Bytes of the checkpoint that a graph is made of."""
        return sum(tensor.nbytes for tensor in self.checkpoint.weights(recipe.components).stored.values())

    def module(self, recipe: Recipe, precision: Precision) -> nn.Module:
        return recipe.build(Parts(self.checkpoint, DTYPES[precision])).eval().requires_grad_(False)

    def probe_axes(self, recipe: Recipe) -> list[dict[str, int]]:
        """Sizes to probe at, as `probe` says; the smallest stage with a batch of two."""
        probing = self.probe
        if probing == "auto":
            probing = "stages" if self.stored_bytes(recipe) <= STAGES_BYTES else "small"
        if probing == "none":
            return []
        cells = [(height // self.cell_px, width // self.cell_px) for height, width in self.resolutions]
        if any("next_height" in port.shape for port in recipe.inputs):
            # From the stages that it starts from; in a bundle of one size, from half of it, and never beyond.
            cells = cells[:-1] or [_halved(cells[0])]
        found: list[dict[str, int]] = []
        for index, (height, width) in enumerate(cells if probing == "stages" else [ANY_CELLS]):
            used = self._within_memory(recipe, height, width, batch=1 if index else 2)
            if {**used, "batch": 0} not in [{**axes, "batch": 0} for axes in found]:  # text has no resolution
                found.append(used)
        return found

    def _within_memory(self, recipe: Recipe, height: int, width: int, *, batch: int) -> dict[str, int]:
        """Sizes of the axes at a latent's size, or at the largest half of it for which there is memory; says so."""
        asked = self._axes(recipe, height, width, batch)
        if "height" not in asked and "picture_height" not in asked:
            return asked
        # The estimate runs the whole module on fake tensors, which small sizes are not worth.
        free = free_memory() if height * width > SMALL_CELLS else None
        if free is None:
            return asked
        module, stored = (
            self.module(recipe, "fp32"),
            2 * self._in_float32(recipe),
        )  # engines keep copies in their layout
        axes = asked
        takes = first = stored + working_bytes(module, recipe.inputs, axes)
        while takes > SHARE * free and height * width > ANY_CELLS[0] * ANY_CELLS[1]:
            batch, (height, width) = 1, _halved((height, width))
            axes = self._axes(recipe, height, width, batch)
            takes = stored + working_bytes(module, recipe.inputs, axes)
        if axes != asked:
            self._note(
                f"{recipe.name} is compared with torch at {self._px(axes)} instead of {self._px(asked)}: there it "
                f"would take about {first / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free."
            )
        return axes

    def _axes(self, recipe: Recipe, height: int, width: int, batch: int) -> dict[str, int]:
        sizes = axis_sizes(height, width, self.cell_px, batch=batch, branches=self.branches, tokens=self.token_axes)
        return used_axes((*recipe.inputs, *recipe.outputs), sizes)

    def _px(self, axes: Mapping[str, int]) -> str:
        """The picture's size that belongs to sizes of axes, for people."""
        if "picture_width" in axes:
            return f"{axes['picture_width']} x {axes['picture_height']} px"
        return f"{axes['width'] * self.cell_px} x {axes['height'] * self.cell_px} px"

    def _in_float32(self, recipe: Recipe) -> int:
        """Bytes of a graph's weights when they are read; of a graph that runs in pieces, those of a piece."""
        tensors = self.checkpoint.weights(recipe.components).stored.values()
        return min(sum(4 * math.prod(tensor.shape) for tensor in tensors), DIRECT_BYTES)

    def key(self, recipe: Recipe, precision: Precision) -> str:
        """Hash of everything that decides the graph's bytes."""
        made_from = {
            "graph": recipe.name,
            "ports": [str(port) for port in (*recipe.inputs, *recipe.outputs)],
            "settings": recipe.settings,
            "precision": precision,
            "opset": OPSET,
            "sources": sources_sha256((*WRITER, recipe.build.__module__)),
            # Exporters and model code change what a graph looks like from version to version.
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
            "configs": {name: dict(self.checkpoint.config(name)) for name in recipe.components},
            "weights": {name: self.checkpoint.sha256(name) for name in recipe.components},
            "deltas": self.checkpoint.deltas_sha256(recipe.components),
        }
        return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()


def _halved(cells: tuple[int, int]) -> tuple[int, int]:
    """Half a latent's size, in an even number of cells, which every patch divides."""
    height, width = (max(side // 4 * 2, 2) for side in cells)
    return height, width


@cache
def sources_sha256(roots: tuple[str, ...]) -> str:
    """Hash of the text of every module of lssgen that some modules import, themselves included.

    Nobody has to remember what decides a graph's bytes. A change that does not matter costs an export, one that is
    forgotten would leave a stale graph.
    """
    digest = hashlib.sha256()
    for name, path in sorted(sources_of(roots).items()):
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources_of(roots: Sequence[str]) -> Mapping[str, Path]:
    """Files of the modules of lssgen that `roots` import, directly or not, and of `roots`; by module."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        spec = find_spec(name) if name not in found else None
        if spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin)
        for node in ast.walk(ast.parse(found[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "lssgen":
                waiting += [node.module, *_submodules(node)]
    return found


def _submodules(node: ast.ImportFrom) -> list[str]:
    """Modules among the names that are imported from a package."""
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    package = find_spec(str(node.module))
    inside = package is not None and package.submodule_search_locations is not None
    return [name for name in names if find_spec(name) is not None] if inside else []
