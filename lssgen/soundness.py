"""Whether a manifest can be true: numbers in their ranges, names that exist, files that stay in the bundle.

What a manifest says is believed everywhere else. So what a damaged or hostile one could do (a size of zero, a token
length of a billion, a file outside of the bundle) is found here, when it is read.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath

from lssgen.manifest import (
    Gates,
    Graph,
    GuidanceRescale,
    GuidanceScale,
    GuidanceWeights,
    Heard,
    Latent,
    LoraFactors,
    LoraWeights,
    Manifest,
    Mix,
    Noise,
    Picture,
    Reference,
    References,
    Row,
    Sizes,
    State,
    Text,
    Tokens,
)
from lssgen.ports import Port

LONGEST_SIDE = 2**16
"""Pixels, or cells, along the longest side that any model could have."""

# Limits far above any model's, and far below what would have a runtime take memory without end.
MOST_TOKENS = 2**16
MOST_CHANNELS = 2**12
MOST_HISTORY = 64
MOST_MODES = 2**10
LARGEST_ID = LARGEST_AXIS = 2**31 - 1
LONGEST_NAME = 255
LONGEST_REASON = 300
DTYPES = frozenset(("float32", "float16", "float64", "int64", "int32", "uint8", "int8", "bool"))

NEEDED = ("step", "decode")
"""Graphs that every run needs. One of a bundle without "text" gets the embeddings of its prompts from elsewhere."""

PORTS: Mapping[str, Mapping[str, int]] = {
    "decode": {"latent": 4, "picture": 4},
    "encode": {"picture": 4, "latent": 4},
    "transition": {"next_latent": 4},
}
"""Ports that a graph must have, by the graph's name up to its "_", and their numbers of axes."""

MAYBE: Mapping[str, Mapping[str, int]] = {"encode": {"posterior_noise": 4, "kept": 4}}
"""The same of ports that it may have: tiny autoencoders have no posterior, and few networks inpaint."""

RANKS: Mapping[type, int] = {
    Latent: 4,
    Noise: 4,
    Row: 2,
    Mix: 2,
    GuidanceWeights: 2,
    GuidanceScale: 1,
    GuidanceRescale: 1,
    Sizes: 3,
    Gates: 2,
    Picture: 4,
    LoraFactors: 2,
    LoraWeights: 2,
}
"""Number of axes of what a port is fed with, where it is always the same."""


def first_fault(manifest: Manifest) -> str:
    """What is wrong with a manifest, in words; empty: nothing."""
    return next(_faults(manifest), "")[:LONGEST_REASON]


def leaves(name: str) -> bool:
    """Whether a file's name leads out of the bundle, or may do so on another system; or cannot be one."""
    # Both, whichever system this is: a bundle may go on to another one.
    paths = (PurePosixPath(name), PureWindowsPath(name))
    outside = any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)
    return outside or not name or "\0" in name or len(name.encode()) > LONGEST_NAME


def _faults(manifest: Manifest) -> Iterator[str]:
    facts = manifest.facts
    sizes = {"channels": (facts.channels, MOST_CHANNELS), "history": (manifest.history, MOST_HISTORY)}
    sizes |= {name: (getattr(facts, name), LONGEST_SIDE) for name in ("cell_px", "align", "patch")}
    sizes |= {f"token_axes {axis}": (size, MOST_TOKENS) for axis, size in manifest.token_axes.items()}
    for height, width in manifest.resolutions:
        sizes |= {f"height of resolution {width} x {height}": (height, LONGEST_SIDE)}
        sizes |= {f"width of resolution {width} x {height}": (width, LONGEST_SIDE)}
    yield from _outside({name: (value, 1, most) for name, (value, most) in sizes.items()})
    yield from _outside({"longest_side": (facts.longest_side, 0, LONGEST_SIDE)})
    for name in NEEDED:
        if name not in manifest.graphs:
            yield f"it names no graph {name!r}"
    for name, graph in manifest.graphs.items():
        yield from _graph_faults(name, graph)
    yield from _feed_faults(manifest)
    text = manifest.graphs.get("text")
    outputs = {port.name: port.shape for port in text.outputs} if text is not None else {}
    if any(isinstance(feed, Reference) for feed in manifest.graphs["step"].feeds.values()):
        yield from _reference_faults(manifest.references)
    for tokens in manifest.tokenizers:
        yield from _token_faults(tokens)
        yield from _outside({f"drop of {tokens.port}": (tokens.drop, 0, max(0, tokens.length - 1))})
        if tokens.heard is not None:
            yield from _heard_faults(tokens.heard, outputs)


def _outside(numbers: Mapping[str, tuple[int, int, int]]) -> Iterator[str]:
    """Numbers, by name, that are not between a least and a most."""
    for name, (value, least, most) in numbers.items():
        if not least <= value <= most:
            yield f"{name} is {value}, which is not in {least} to {most}"


def _graph_faults(name: str, graph: Graph) -> Iterator[str]:
    for file in (graph.file, *graph.data):
        if leaves(file):
            yield f"file {file[:80]!r} of graph {name!r} is not a name within the bundle"
    for port in (*graph.inputs, *graph.outputs):
        if any(len(word) > LONGEST_NAME for word in (port.name, *map(str, port.shape))):
            yield f"graph {name!r} has a name of more than {LONGEST_NAME} letters"
        if port.dtype not in DTYPES:
            yield f"{port.name} of graph {name!r} has the type {port.dtype!r}; there are {', '.join(sorted(DTYPES))}"
        for axis in port.shape:
            if isinstance(axis, int):
                yield from _outside({f"an axis of {port.name} of graph {name!r}": (axis, 1, LARGEST_AXIS)})
            elif axis not in graph.axes:
                yield f"graph {name!r} does not say what axis {axis!r} of {port.name} counts"
    if (said := graph.quantisation) is not None:
        counts = {"products": said.products, "attention": said.attention}
        yield from _outside({f"{word} of graph {name!r}": (count, 0, LARGEST_AXIS) for word, count in counts.items()})
    ranks = {port.name: len(port.shape) for port in (*graph.inputs, *graph.outputs)}
    if len(ranks) < len(graph.inputs) + len(graph.outputs):
        yield f"graph {name!r} has two ports of one name"
    for port, rank in PORTS.get(name.partition("_")[0], {}).items():
        if ranks.get(port) != rank:
            yield f"graph {name!r} has no {port} with {rank} axes"
    for port, rank in MAYBE.get(name, {}).items():
        if ranks.get(port, rank) != rank:
            yield f"graph {name!r} has a {port} without {rank} axes"
    for port in graph.feeds:
        if port not in {port.name for port in graph.inputs}:
            yield f"graph {name!r} has no input {port!r}, which is said to be fed"
    for port in graph.inputs:
        if name == "text" and ranks[port.name] != 2:
            yield f"{port} of graph 'text' is not (batch, tokens)"
        if graph.runs not in ("stage", "transition"):
            continue
        if port.name not in graph.feeds:
            yield f"graph {name!r} does not say what {port.name} is fed with"
        elif (wanted := RANKS.get(type(feed := graph.feeds[port.name]), ranks[port.name])) != ranks[port.name]:
            yield f"{port} of graph {name!r} is fed with {feed}, which has {wanted} axes"


def _feed_faults(manifest: Manifest) -> Iterator[str]:
    step, text = manifest.graphs["step"], manifest.graphs.get("text")  # the step's absence has been told
    outputs = {port.name for port in step.outputs}
    ranks = {port.name: len(port.shape) for port in step.inputs}
    said = {port.name: len(port.shape) + 1 for port in text.outputs} if text is not None else None
    if manifest.small_step:
        small = manifest.graphs.get(manifest.small_step)
        if small is None or _place_of(small) != _place_of(step):
            yield f"small_step is {manifest.small_step[:80]!r}, which is not a graph with the ports of the step"
        yield from _outside({"small_cells": (manifest.small_cells, 1, LONGEST_SIDE**2)})
    yield from _control_faults(manifest)
    yield from _slot_faults("step", step, 0)
    if text is not None:
        yield from _slot_faults("text", text, next(_ranks(step), 0))
    latents = 0
    for port, feed in step.feeds.items():
        if isinstance(feed, State):
            latents += feed.start == "latent"
            if feed.output not in outputs:
                yield f"{port} is fed with {feed.output!r}, which is not an output of the step"
        if not isinstance(feed, Text) or said is None:
            continue
        if feed.output not in said:
            yield f"{port} is fed with {feed.output!r}, which is not an output of the text graph"
        elif said[feed.output] != ranks[port]:
            yield f"{port} is fed with {feed.output!r}, which has {said[feed.output]} axes with that of the branches"
    if latents != 1:
        yield f"the step has {latents} states that start as the latent; it needs one"


def _place_of(graph: Graph) -> tuple[object, ...]:
    """All that must be the same of graphs that run in each other's place."""
    return graph.inputs, graph.outputs, graph.feeds, graph.axes, graph.runs


def _reference_faults(rules: References | None) -> Iterator[str]:
    if rules is None:
        yield "its step sees reference pictures, for which it has no rules"
        return
    sides = {"patch": rules.patch, "unit_px": rules.unit_px, "least_side_px": rules.least_side_px, "most": rules.most}
    yield from _outside({f"{name} of references": (value, 1, LONGEST_SIDE) for name, value in sides.items()})
    yield from _outside({"most_px of references": (rules.most_px, 1, LARGEST_AXIS)})
    if not (rules.most_aspect >= 1 and rules.least_side_px >= rules.unit_px):
        yield "references could be cut down to nothing: most_aspect is below 1, or least_side_px below unit_px"


def _control_faults(manifest: Manifest) -> Iterator[str]:
    known, step = manifest.facts.control, manifest.graphs["step"]
    if known is None:
        return
    yield from _outside({"the number of kinds of control picture": (known.modes, 0, MOST_MODES)})
    wanted = 7 + manifest.history + 1 + known.modes
    for port in step.inputs:
        if isinstance(step.feeds[port.name], Row) and port.shape[1:] != (wanted,):
            yield f"{port} has not the {wanted} columns of a step with this ControlNet"


def _slots(graph: Graph) -> list[tuple[Port, LoraFactors | LoraWeights]]:
    """Inputs for LoRAs, and what they are fed with."""
    ports = {port.name: port for port in graph.inputs}
    feeds = [(name, feed) for name, feed in graph.feeds.items() if isinstance(feed, LoraFactors | LoraWeights)]
    return [(ports[name], feed) for name, feed in feeds if name in ports]


def _ranks(graph: Graph) -> Iterator[int | str]:
    """Number of ranks, as each input for LoRAs has it."""
    return (port.shape[-1 if isinstance(feed, LoraWeights) else 0] for port, feed in _slots(graph))


def _slot_faults(name: str, graph: Graph, expected: int | str) -> Iterator[str]:
    """What is wrong with the room for LoRAs in a graph, which has as many ranks as the step's; 0: any number."""
    found = _slots(graph)
    if len({type(feed) for _, feed in found}) != len(found) or len(found) not in (0, 2):
        yield f"graph {name!r} has not one input for the factors of LoRAs, and one for their weights"
        return
    ranks = set(_ranks(graph))
    if len(ranks) > 1 or not all(isinstance(rank, int) and (rank == expected or not expected) for rank in ranks):
        yield f"the inputs of graph {name!r} for LoRAs differ from each other or from the step's in the number of ranks"
    for port, feed in found:
        if isinstance(feed, LoraFactors):
            bad = [name for name, shape in feed.layers.items() if len(shape) < 2 or min(shape) < 1]
            if bad or port.shape[1:] != (feed.columns,):
                said = ", ".join(bad)[:80] or feed.columns
                yield f"{port.name} of graph {name!r} has not the columns of its layers ({said})"


def _token_faults(tokens: Tokens) -> Iterator[str]:
    name = f"tokenizer {tokens.file[:80]!r}"
    if leaves(tokens.file):
        yield f"{name} is not a name within the bundle"
    yield from _outside(
        {
            f"length of {name}": (tokens.length, 1, MOST_TOKENS),
            f"pad_multiple of {name}": (tokens.pad_multiple, 1, MOST_TOKENS),
            f"pad_id of {name}": (tokens.pad_id, 0, LARGEST_ID),
        }
    )


def _heard_faults(heard: Heard, outputs: Mapping[str, tuple[int | str, ...]]) -> Iterator[str]:
    shape = outputs.get(heard.output, ())
    if len(shape) != 3:
        yield f"tokens are heard in {heard.output!r}, which is not an output of the text graph with rows and columns"
        return
    width = shape[2] if isinstance(shape[2], int) else LARGEST_AXIS
    first, last = heard.columns or (0, width)
    if not (0 <= first < last <= width and 0 <= heard.row < MOST_TOKENS):
        yield f"tokens are heard in columns {first} to {last} from row {heard.row} on, of {width} columns"
