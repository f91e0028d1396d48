"""The bundle: a folder with graphs, weights and tokenizers, and a manifest that says everything about them.

The runtime reads nothing else and knows no model family. `FORMAT` changes when an old runtime would misread a new
bundle.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from lssgen.errors import BundleError
from lssgen.plan.facts import ModelFacts
from lssgen.ports import Port

FORMAT = 1
MANIFEST = "manifest.json"


Precision = Literal["fp32", "fp16", "bf16"]
"""What a network computes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One comparison of a graph with its torch module, on seeded inputs.

    Attributes:
        axes: Size of every dynamic axis.
        error: Largest over the outputs of |graph - torch| in the L2 norm, relative to |torch|.
        bound: What `error` was allowed to be.
        finite: Whether every output was.
        peak: Largest magnitude of any output.
    """

    axes: Mapping[str, int]
    error: float
    bound: float
    finite: bool
    peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One ONNX graph of the bundle.

    Attributes:
        file: ONNX file, relative to the bundle.
        data: Files with its weights, relative to the bundle.
        sha256: Of every file above, by name.
        key: Hash of everything the graph was made from; two graphs with one key are the same.
        precision: Of the network inside: "fp32", "fp16" or "bf16". Inputs and outputs keep their own types.
        inputs, outputs: The graph's ports.
        probes: How well it computes what torch computes, at every size where that was tried.
        stands_for: Key of the graph in the precision asked for, which did not hold up; empty: it did.
        why: How it did not; a sentence.
    """

    file: str
    data: tuple[str, ...] = ()
    sha256: Mapping[str, str]
    key: str
    precision: Precision
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    probes: tuple[Probe, ...] = ()
    stands_for: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How a prompt becomes the token ids of one port of the "text" graph.

    Attributes:
        port: Name of the (batch, tokens) int64 input.
        mask_port: Name of the attention mask input of the same shape, if the encoder takes one.
        file: A tokenizer of the `tokenizers` library (tokenizer.json), special tokens included.
        length: Longest sequence; more is cut off, with a warning.
        pad_id: Token that fills up.
        pad_to: Fill up to the "length", or to the "longest" prompt of the batch.
        pad_side: Where the filling goes.
        pad_multiple: With "longest": round up to a multiple of this.
    """

    port: str
    mask_port: str | None = None
    file: str
    length: int
    pad_id: int
    pad_to: Literal["length", "longest"] = "length"
    pad_side: Literal["left", "right"] = "right"
    pad_multiple: int = 1


SizeValue = Literal[
    "height_px",
    "width_px",
    "original_height",
    "original_width",
    "target_height",
    "target_width",
    "crop_top",
    "crop_left",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePort:
    """A step input that tells the network about the stage's size.

    Attributes:
        port: Name of the (branches, batch, len(values)) float32 input.
        values: What its entries are: the stage's own "height_px" and "width_px"; "original_height" and
            "original_width", "target_height" and "target_width", which are the same unless the user gives others; and
            "crop_top" and "crop_left", 0 unless the user gives others.
    """

    port: str
    values: tuple[SizeValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipLayers:
    """Skip-layer guidance as the checkpoint's authors use it (SD3.5-medium: layers 7, 8, 9; scale 2.8; 1 % to 20 %).

    Attributes:
        layers: Layers that the third guidance branch leaves out.
        num_layers: How many gates the step graph has.
        scale: Weight of (positive - skip).
        start, stop: Window, as shares of the steps; both ends excluded.
    """

    layers: tuple[int, ...]
    num_layers: int
    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsampler:
    """The latent upsampler inside the "transition_resnet" graph.

    Attributes:
        source: Folder that it came from.
        sha256: Of its weight file.
        licence: As its folder says.
        config: Its config.json.
        converted_to: Normalisation that the graph converts latents to before the upsampler, and back from after it, in
            the fields of a VAE's config.json; None: the upsampler gets the model's latents as they are.
    """

    source: str
    sha256: str
    licence: str
    config: Mapping[str, object]
    converted_to: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights came from."""

    model: str
    revision: str | None = None
    licence: str = "unknown"
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a runtime must know about a bundle.

    Graphs, by name, and the ports they have beyond what `docs/bundle.md` lists for every bundle:

        text               (batch, tokens) ids            -> one output per text-conditioning input of "step"
        step               latent, history, noise, row, guidance_weights, conditioning -> next_latent, next_history
        transition_<space> latent, noise, mix             -> next_latent   (space: resnet, latent or pixel)
        decode             latent                         -> picture (batch, height, width, 3) uint8
        encode             picture, posterior_noise       -> latent

    Attributes:
        format: `FORMAT` of the lssgen that wrote it.
        lssgen: Version of that lssgen.
        family: Record the export used; for people, the runtime does not look at it.
        facts: What the plan must know.
        resolutions: Stage sizes in pixels, (height, width), smallest first: the ones probed, and built for by
            backends with static profiles.
        history: Estimates that the step graph carries from step to step, at least 1.
        graphs: By name, see above.
        tokenizers: One per token input of the "text" graph.
        token_axes: Usual size of every dynamic axis that counts tokens. Where the tokenizers fill up to a "length", the
            only one.
        size_ports: Size conditioning of the "step" graph.
        empty_negative: What stands for a negative prompt that was not given: the "encode"d empty text, or "zeros".
        skip_layers: Skip-layer guidance, if the step graph has layer gates.
        upsampler: None where the bundle has no "transition_resnet".
        notes: What the user should know, one sentence each.
    """

    format: int = FORMAT
    lssgen: str
    family: str
    facts: ModelFacts
    source: Source
    resolutions: tuple[tuple[int, int], ...]
    history: int
    graphs: Mapping[str, Graph]
    tokenizers: tuple[Tokens, ...]
    token_axes: Mapping[str, int] = field(default_factory=dict)
    size_ports: tuple[SizePort, ...] = ()
    empty_negative: Literal["encode", "zeros"] = "encode"
    skip_layers: SkipLayers | None = None
    upsampler: Upsampler | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest and the folder it describes."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Path of a file that the manifest names."""
        return self.folder / name


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and see that its files are there. Contents are checked by `verify`.

    Raises:
        BundleError: No manifest, another format version, or a file that is missing.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder} is no bundle: {path} cannot be read ({error.strerror}); make one with lssgen-export"
        ) from error
    try:
        version = msgspec.json.decode(text, type=dict[str, object]).get("format")
        if version != FORMAT:
            raise BundleError(f"{path} has format {version!r}, this lssgen reads {FORMAT}; export the model again")
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{path} is damaged: {error}; export the model again") from error
    bundle = Bundle(folder, manifest)
    for name in files(manifest):
        if not bundle.path(name).is_file():
            raise BundleError(f"bundle {folder} is incomplete: {name} is missing; run the same lssgen-export again")
    return bundle


def files(manifest: Manifest) -> tuple[str, ...]:
    """Every file of a bundle but the manifest."""
    graphs = [name for graph in manifest.graphs.values() for name in (graph.file, *graph.data)]
    return tuple(dict.fromkeys((*graphs, *(tokens.file for tokens in manifest.tokenizers))))


def verify(bundle: Bundle) -> None:
    """Compare every graph file with the hash in the manifest; reads the whole bundle.

    Raises:
        BundleError: Names the first file that differs.
    """
    for graph in bundle.manifest.graphs.values():
        for name, expected in graph.sha256.items():
            if sha256_of(bundle.path(name)) != expected:
                raise BundleError(f"{bundle.path(name)} has changed since the export; run the same lssgen-export again")


def manifest_json(manifest: Manifest) -> bytes:
    """The manifest as it is written: indented, keys in the order of the classes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def sha256_of(path: Path) -> str:
    """Hash of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
