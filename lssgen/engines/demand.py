"""Which sizes a graph is compiled for: a pure function of the manifest and of what is asked.

A compiled engine holds several profiles. Each pins every dynamic axis to one size (min = opt = max), so that kernels
are chosen for exactly that size and scratch memory is no larger than it must be. Only token axes that follow the
prompt's length stay ranges.

    graph              one profile for each
    text               (one: prompts are encoded one at a time)
    step               resolution, number of guidance branches, batch
    transition_<space> pair of resolutions that double, batch
    decode             resolution that no other one doubles, where pictures end; one picture at a time
    encode             resolution; one picture at a time
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lssgen.bundle import Manifest, Tokens
from lssgen.errors import BuildError
from lssgen.ports import Port

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Sizes that an axis may have: low <= best <= high; the compiler optimises for `best`."""

    low: int
    best: int
    high: int

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.low <= size <= self.high

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


@dataclass(frozen=True, slots=True)
class Demand:
    """What one wants to run.

    Attributes:
        batches: Numbers of pictures painted together; a profile each.
        branches: Guidance branches of a step; empty for the model's own: 2 where guidance is by branches (and 3 where
            there is skip-layer guidance), else 1.
        resolutions: Stage sizes in pixels (height, width), smallest first; empty for the manifest's.
    """

    batches: tuple[int, ...] = (1,)
    branches: tuple[int, ...] = ()
    resolutions: tuple[Size, ...] = ()


def profiles_of(manifest: Manifest, demand: Demand) -> dict[str, tuple[Profile, ...]]:
    """The profiles of every graph of a bundle, smallest first. Graphs that never run at these sizes are left out.

    Raises:
        BuildError: A resolution is no multiple of the latent cell, or a port has an axis that nothing here decides.
    """
    tokens = token_axes(manifest)
    found: dict[str, tuple[Profile, ...]] = {}
    for name, graph in manifest.graphs.items():
        inputs, outputs = _axes(graph.inputs), _axes(graph.outputs)
        profiles: list[Profile] = []
        for sizes in graph_sizes(name, manifest, demand):
            known = {axis: fixed(size) for axis, size in sizes.items()} | tokens
            if unknown := sorted(inputs - set(known)):
                raise BuildError(
                    f"graph {name!r} has axes {', '.join(unknown)}, which no resolution, batch or tokenizer decides; "
                    "export the model again with this version of lssgen"
                )
            profile = Profile({axis: known[axis] for axis in sorted((inputs | outputs) & set(known))})
            if profile not in profiles:
                profiles.append(profile)
        if profiles:
            found[name] = tuple(profiles)
    return found


def graph_sizes(name: str, manifest: Manifest, demand: Demand) -> list[dict[str, int]]:
    """Sizes of the axes that resolution, batch and guidance decide, for every profile of a graph.

    Raises:
        BuildError: A resolution is no multiple of the latent cell.
    """
    resolutions = demand.resolutions or manifest.resolutions
    batches = demand.batches if name == "step" or name.startswith("transition_") else (1,)
    if name == "text":
        places: list[dict[str, int]] = [{}]
    elif name == "step":
        branches = demand.branches or branch_counts(manifest)
        places = [_here(manifest, size) | {"branches": count} for size in resolutions for count in branches]
    elif name.startswith("transition_"):
        places = [
            _here(manifest, size) | {f"next_{axis}": cells for axis, cells in _here(manifest, _double(size)).items()}
            for size in resolutions
            if _double(size) in resolutions
        ]
    elif name == "decode":
        places = [_here(manifest, size) for size in resolutions if _double(size) not in resolutions]
    else:
        places = [_here(manifest, size) for size in resolutions]
    return [place | {"batch": batch} for place in places for batch in batches]


def branch_counts(manifest: Manifest) -> tuple[int, ...]:
    """How many guidance branches the steps of a model's usual run evaluate."""
    if manifest.facts.guidance != "branches":
        return (1,)
    return (2,) if manifest.skip_layers is None else (2, 3)


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
        for axis in _axes([port]) - {"batch"}
    }
    return usual | spoken


def _length(tokens: Tokens) -> Extent:
    if tokens.pad_to == "length":
        return fixed(tokens.length)
    shortest = tokens.pad_multiple
    return Extent(shortest, min(tokens.length, max(shortest, tokens.length // 4)), tokens.length)


def _here(manifest: Manifest, size: Size) -> dict[str, int]:
    cell = manifest.facts.cell_px
    height, width = size
    if height % cell or width % cell:
        raise BuildError(f"resolution {height} x {width} is no multiple of the model's latent cell of {cell} pixels")
    return {"height": height // cell, "width": width // cell, "picture_height": height, "picture_width": width}


def _double(size: Size) -> Size:
    return (2 * size[0], 2 * size[1])


def _axes(ports: Iterable[Port]) -> set[str]:
    return {axis for port in ports for axis in port.shape if isinstance(axis, str)}
