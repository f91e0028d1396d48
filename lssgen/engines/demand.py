"""What runs need of a bundle, and for which sizes that makes its graphs run: a pure function of the manifest.

A compiled engine holds several profiles. Each pins every dynamic axis to one size (min = opt = max), so that kernels
are chosen for exactly that size and scratch memory is no larger than it must be. Only token axes that follow the
prompt's length stay ranges.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lssgen.choices import choice, refuse_outside
from lssgen.errors import BuildError
from lssgen.manifest import Gates, Graph, Manifest, Quantity, Reference, Tokens
from lssgen.plan.options import MOST_SIDE_PX
from lssgen.ports import Port

Size = tuple[int, int]

MOST_BATCH = 4096
"""Pictures painted together; a device holds hundreds of small ones at most."""

_SIZES = "what to compile for"


@dataclass(frozen=True, slots=True)
class Demand:
    """What one wants to run.

    Attributes:
        graphs: Names of the graphs; empty for all of the bundle.
        batches: Numbers of pictures painted together; a profile each.
        branches: Numbers of guidance branches of a step; empty for the model's own: 2 where guidance is by branches
            (and 3 where there is skip-layer guidance), else 1.
        resolutions: Stage sizes in pixels (height, width), smallest first; empty for the manifest's.
        previews: True where the picture of every stage is decoded, and not only the last one's.

    Raises:
        BuildError: A number that cannot be one of pictures, branches or pixels.
    """

    graphs: tuple[str, ...] = ()
    batches: tuple[int, ...] = choice(
        (1,), name="--batch", help="pictures painted together", metavar="N,...", least=1, most=MOST_BATCH, group=_SIZES
    )
    branches: tuple[int, ...] = choice(
        (),
        help="guidance branches of a step",
        metavar="N,...",
        least=1,
        most=3,
        group=_SIZES,
        unset="the model's own",
    )
    resolutions: tuple[Size, ...] = choice(
        (),
        aliases=("--size",),
        help="stage sizes in pixels: 512,1024 or 512x768",
        least=1,
        most=MOST_SIDE_PX,
        group=_SIZES,
        unset="those that the bundle was exported for",
    )
    previews: bool = choice(False, help="also for pictures of the stages before the last one", group=_SIZES)

    def __post_init__(self) -> None:
        refuse_outside(self, BuildError)


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Sizes that an axis may have: low <= best <= high; the compiler optimises for `best`."""

    low: int
    best: int
    high: int

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.low <= size <= self.high

    def less(self, count: int) -> "Extent":
        """Of an axis that is shorter by so many."""
        return Extent(self.low - count, self.best - count, self.high - count)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


def fixed(size: int) -> Extent:
    """The extent that allows one size."""
    return Extent(size, size, size)


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes of all dynamic axes of a graph's ports, by axis name."""

    axes: Mapping[str, Extent]

    def __str__(self) -> str:
        return ", ".join(f"{name} {extent}" for name, extent in self.axes.items())

    def shape(self, port: Port) -> tuple[Extent, ...]:
        """What the axes of a port may be. An axis that only follows from others, of an output, counts as 1."""
        return tuple(self.axes.get(axis, fixed(1)) if isinstance(axis, str) else fixed(axis) for axis in port.shape)

    def holds(self, axes: Mapping[str, int]) -> bool:
        """Whether tensors with these axes fit."""
        return all(size in self.axes[name] for name, size in axes.items() if name in self.axes)


def profiles_of(manifest: Manifest, demand: Demand) -> dict[str, tuple[Profile, ...]]:
    """The profiles of every graph that is demanded, smallest first. Graphs that never run at these sizes are left out.

    Raises:
        BuildError: A resolution is not a multiple of the latent cell, or a port has an axis that the manifest does not
            explain.
    """
    tokens = token_axes(manifest)
    found: dict[str, tuple[Profile, ...]] = {}
    for name in demand.graphs or manifest.graphs:
        graph = manifest.graphs[name]
        # Sorted into tuples, since occasions that differ in what this graph does not count make one profile.
        profiles = dict.fromkeys(
            tuple(sorted(_axes(name, graph, sizes, tokens).items())) for sizes in _occasions(manifest, graph, demand)
        )
        if profiles:
            found[name] = tuple(Profile(dict(axes)) for axes in profiles)
    return found


def stage_quantities(cell_px: int, size: Size, following: Size | None = None) -> dict[Quantity, int]:
    """What a stage's size decides.

    Args:
        cell_px: Pixels along one side of a latent cell.
        size: (height, width) of the stage in cells.
        following: The same of the next stage, for a transition.
    """
    height, width = size
    found: dict[Quantity, int] = {
        "one": 1,
        "height": height,
        "width": width,
        "picture_height": height * cell_px,
        "picture_width": width * cell_px,
    }
    return found if following is None else {**found, "next_height": following[0], "next_width": following[1]}


def size_in_cells(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> Size | None:
    """Latent size, (height, width) in cells, that a graph's tensors belong to; None for a graph that has no size.

    Args:
        graph: The graph's entry in the manifest.
        shapes: Shapes of its tensors by port; ports that are not among them are left out.
    """
    found = {
        graph.axes.get(axis): size
        for port in (*graph.inputs, *graph.outputs)
        if port.name in shapes
        for axis, size in zip(port.shape, shapes[port.name], strict=True)
        if isinstance(axis, str)
    }
    return (found["height"], found["width"]) if "width" in found else None


def branch_counts(manifest: Manifest) -> tuple[int, ...]:
    """How many guidance branches the steps of a model's usual run evaluate."""
    if manifest.facts.guidance != "branches":
        return (1,)
    return (2, 3) if manifest.feeds(Gates) else (2,)


def token_axes(manifest: Manifest) -> dict[str, Extent]:
    """Extents of the axes that hold prompt tokens.

    One length where prompts are filled up to it, a range where the longest prompt sets it. An axis that joins several
    encoders has its usual size, which the manifest names.
    """
    rules = {rule.port: rule for rule in manifest.tokenizers}
    usual = {axis: fixed(size) for axis, size in manifest.token_axes.items()}
    spoken = {
        axis: _length(rules[port.name])
        for graph in manifest.graphs.values()
        for port in graph.inputs
        if port.name in rules
        for axis in port.shape
        if isinstance(axis, str) and graph.axes.get(axis) == "tokens"
    }
    shortened = {
        axis: _length(rule).less(rule.drop)
        for graph in manifest.graphs.values()
        for rule in manifest.tokenizers
        if (axis := rule.shortened(graph.outputs)) is not None
    }
    # A tokenizer's own rule comes last: of an axis that is a range, the usual size is one point.
    return usual | spoken | shortened


def open_axes(manifest: Manifest) -> frozenset[str]:
    """Axes whose size every run decides: of prompts up to the longest, and of reference pictures, which it may have."""
    ranges = {axis for axis, extent in token_axes(manifest).items() if extent.low != extent.high}
    step = manifest.graphs.get("step")
    shown = [port.shape for port in step.inputs if isinstance(step.feeds.get(port.name), Reference)] if step else []
    return frozenset(ranges | {axis for shape in shown for axis in shape if isinstance(axis, str) and axis != "batch"})


def _length(tokens: Tokens) -> Extent:
    if tokens.pad_to == "length":
        return fixed(tokens.length)
    shortest = tokens.pad_multiple + tokens.drop
    # Prompts are mostly much shorter than the longest: the compiler shall choose its kernels for such a one.
    return Extent(shortest, min(tokens.length, max(shortest, tokens.length // 4)), tokens.length)


def _occasions(manifest: Manifest, graph: Graph, demand: Demand) -> list[dict[Quantity, int]]:
    """What every quantity that the graph counts is, on every occasion on which it runs; smallest stage first."""
    counted = set(graph.axes.values())
    branches = (demand.branches or branch_counts(manifest)) if "branches" in counted else (1,)
    batches = demand.batches if "batch" in counted else (1,)
    return [
        {**place, "branches": count, "batch": batch}
        for place, count, batch in product(_places(manifest, graph, demand), branches, batches)
    ]


def _places(manifest: Manifest, graph: Graph, demand: Demand) -> Sequence[dict[Quantity, int]]:
    """The stages at which the graph runs; none at all for one that runs for prompts."""
    sizes = [_cells(manifest, size) for size in demand.resolutions or manifest.resolutions]
    cell_px = manifest.facts.cell_px
    match graph.runs:
        case "stage" if manifest.small_step:
            mine = [size for size in sizes if manifest.graphs[manifest.step_at(*size)] is graph]
            return [stage_quantities(cell_px, size) for size in mine]
        case "prompt":
            return [{"one": 1}]
        case "transition":
            # Every stage has twice the sides of the one before, so other pairs of sizes are never met.
            return [stage_quantities(cell_px, size, _double(size)) for size in sizes if _double(size) in sizes]
        case "end" if not demand.previews:
            # A size whose double is there, too, is a stage before the last, of which no picture is decoded.
            return [stage_quantities(cell_px, size) for size in sizes if _double(size) not in sizes]
        case _:
            return [stage_quantities(cell_px, size) for size in sizes]


def _axes(name: str, graph: Graph, sizes: Mapping[Quantity, int], tokens: Mapping[str, Extent]) -> dict[str, Extent]:
    """Extents of the axes that the graph's ports name.

    Raises:
        BuildError: The manifest does not explain an axis of an input.
    """
    known = {axis: fixed(sizes[what]) for axis, what in graph.axes.items() if what in sizes}
    known |= {axis: extent for axis, extent in tokens.items() if graph.axes.get(axis) == "tokens"}
    if unknown := sorted(_named(graph.inputs) - set(known)):
        raise BuildError(
            f"graph {name!r} has axes {', '.join(unknown)}, which the bundle's manifest does not explain; export the "
            "model again with this version of lssgen"
        )
    return {axis: known[axis] for axis in _named((*graph.inputs, *graph.outputs)) & set(known)}


def _cells(manifest: Manifest, size: Size) -> Size:
    cell = manifest.facts.cell_px
    height, width = size
    if height % cell or width % cell:
        raise BuildError(f"resolution {width} x {height} is not a multiple of the model's latent cell of {cell} pixels")
    return height // cell, width // cell


def _double(size: Size) -> Size:
    return (2 * size[0], 2 * size[1])


def _named(ports: Iterable[Port]) -> set[str]:
    return {axis for port in ports for axis in port.shape if isinstance(axis, str)}
