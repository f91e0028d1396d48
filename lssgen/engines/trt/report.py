"""What came out of a build: the report stored beside every engine, read from what the library logs.

The log is the only place that shows the compiled layers where no GPU is present (an inspector needs a loaded engine).
At verbose level it lists every layer after fusion with the ONNX nodes it came from, and the memory of each profile.
Of an engine for several targets, TensorRT-RTX 1.7.1 lists the layers for the oldest of them.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lssgen.engines.demand import Profile
from lssgen.engines.memory import megabytes
from lssgen.engines.trt.options import Bounds
from lssgen.errors import BuildError
from lssgen.manifest import Probe, Quantisation
from lssgen.ports import Port

_LOG = logging.getLogger("lssgen")
_TYPE_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1, "FP8": 1}
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_OUTPUTS = re.compile(r"Outputs: \[(.*?)\], TacticName")
_TENSOR = re.compile(r"Dimensions: \[([\d,]*)\].*?Datatype: (\w+)")
_KIND = re.compile(r"LayerType: (\w+)")
_READ = (re.compile(r"Inputs: \[(.*?)\], Constants"), re.compile(r"Constants: \[(.*?)\], Outputs"))
_DTYPE = re.compile(r"Datatype: (\w+)")
_FEW = ("FP4E2M1", "Int8", "FP8")  # of NVFP4, whose scales are FP8, the codes
CONVOLUTION = "correlation"
"""TensorRT's name for it. A layer of its own that adds the bias names the node too, and does not count."""
_ACTIVATION = re.compile(r"^Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"^Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention of the network, before compilation.

    Attributes:
        node: Name of its ONNX node.
        dtype: "HALF", "BF16", "FLOAT", ...
        head: Size of one head.
    """

    node: str
    dtype: str
    head: int

    @property
    def fusible(self) -> bool:
        """Whether a fused kernel exists: 16-bit types, heads of 16 to 256 in steps of 8. Measured, TensorRT-RTX 1.7."""
        return self.dtype in ("HALF", "BF16") and 16 <= self.head <= 256 and self.head % 8 == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfused:
    """An attention that stayed several layers: slow, and its scores are written to memory.

    Attributes:
        node: Name of its ONNX node.
        profiles: Number of profiles in which it did.
        expected: True where no fused kernel exists for its type or head size.
    """

    node: str
    profiles: int
    expected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One built engine.

    Attributes:
        graph: Name of the graph in the bundle.
        content: Hash of the graph and its weights.
        backend, version: Library that built it.
        targets: Architectures it runs on: "sm89", ...
        precision: Precision of the network inside.
        options: Options of the build.
        profiles: Sizes it was built for; a binding picks the profile that holds its shapes.
        inputs, outputs: Ports of the graph.
        seconds: Time of the build, parsing included.
        plan_bytes: Size of the file.
        plan_sha256: Hash of the file.
        weight_bytes: Device memory of the weights.
        activation_bytes: Scratch device memory of each profile.
        attentions: Number of attentions in the network; each is compiled once a profile.
        unfused: Attentions that did not become one kernel.
        largest: Largest tensor between two layers: (bytes, ONNX node that makes it).
        structure: Hash of the graph without its weights; empty where these cannot be exchanged.
        fixed_weights: Hash of the weights that cannot be exchanged all the same.
        refitted_from: Key of the engine that it is a copy of, with other weights; empty: it was built.
        probes: Comparisons with ONNX Runtime on the CPU, where it was run for them.
        coded: Number of products and fused attentions of codes, all profiles together, by type of the codes: "INT8",
            "FP8", "FP4E2M1"; attentions as "FP8 attention".
    """

    graph: str
    content: str
    backend: str
    version: str
    targets: tuple[str, ...]
    precision: str
    options: Mapping[str, object]
    profiles: tuple[Profile, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    seconds: float
    plan_bytes: int
    plan_sha256: str
    weight_bytes: int
    activation_bytes: tuple[int, ...]
    attentions: int
    unfused: tuple[Unfused, ...] = ()
    largest: tuple[int, str] = (0, "")
    structure: str = ""
    fixed_weights: str = ""
    refitted_from: str = ""
    probes: tuple[Probe, ...] = ()
    coded: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def scratch_bytes(self) -> int:
        """Scratch device memory that serves any of its profiles."""
        return max(self.activation_bytes, default=0)

    def __str__(self) -> str:
        scratch = ", ".join(megabytes(size) for size in self.activation_bytes)
        text = (
            f"{self.graph}: {self.precision} for {', '.join(self.targets)} in {self.seconds:.1f} s; "
            f"{megabytes(self.plan_bytes)}, weights {megabytes(self.weight_bytes)}, "
            f"scratch of each profile {scratch}"
        )
        if self.attentions:
            fused = self.attentions - len({attention.node for attention in self.unfused})
            text += f"; {fused} of {self.attentions} attentions fused"
        if self.coded:
            text += f"; in few bits: {', '.join(f'{count} {kind}' for kind, count in sorted(self.coded.items()))}"
        if self.refitted_from:
            text += f"; refitted from {self.refitted_from}"
        if self.probes:
            text += f"; {max(probe.error for probe in self.probes):.1g} from ONNX Runtime"
        return text


@dataclass(frozen=True, slots=True)
class Layer:
    """A compiled layer.

    Attributes:
        name: Name as logged; "_mha_" in it marks fused attention.
        nodes: ONNX nodes it came from.
        output_bytes: Size of its largest output.
        codes: Type of the codes that it multiplies; empty: it multiplies none.
        product: Part of the names of ONNX nodes that are its products.
    """

    name: str
    nodes: tuple[str, ...]
    output_bytes: int
    codes: str = ""
    product: str = "/MatMul"


@dataclass(frozen=True, slots=True)
class Findings:
    """What the log of one build says."""

    layers: tuple[Layer, ...] = ()
    activation_bytes: tuple[int, ...] = ()
    weight_bytes: int = 0
    fused: Mapping[str, int] = field(default_factory=dict)
    coded: Mapping[str, int] = field(default_factory=dict[str, int])

    def unfused(self, attentions: Sequence[Attention], profiles: int) -> tuple[Unfused, ...]:
        """Attentions that are not one kernel in every profile."""
        return tuple(
            Unfused(node=one.node, profiles=profiles - self.fused.get(one.node, 0), expected=not one.fusible)
            for one in attentions
            if self.fused.get(one.node, 0) < profiles
        )

    @property
    def largest(self) -> tuple[int, str]:
        layer = max(self.layers, key=lambda layer: layer.output_bytes, default=Layer("", (), 0))
        return layer.output_bytes, ", ".join(layer.nodes) or layer.name


def findings(lines: Sequence[str]) -> Findings:
    """Read the log of one build."""
    activation = [int(match[1]) for line in lines if (match := _ACTIVATION.match(line))]
    weights = [int(match[1]) for line in lines if (match := _WEIGHTS.match(line))]
    tables = [line for line in lines if line.startswith("Layers:")]
    layers = [_layer(row) for table in tables for row in table.splitlines() if row.startswith("Name: ")]
    fused: dict[str, int] = {}
    for layer in layers:
        # Myelin's name for its fused attention kernels, "_gemm_mha_v2_..." and such.
        if "mha" in layer.name:
            for node in layer.nodes:
                fused[node] = fused.get(node, 0) + 1
    return Findings(tuple(layers), tuple(activation), sum(weights), fused, _coded(layers))


def _coded(layers: Sequence[Layer]) -> dict[str, int]:
    """Products and attentions of codes, by type: by ONNX node, since one layer may compute several products."""
    found: dict[str, int] = {}
    for layer in layers:
        if layer.codes and "mha" in layer.name:
            found[f"{layer.codes} attention"] = found.get(f"{layer.codes} attention", 0) + 1
        elif layer.codes:
            products = sum(layer.product in node for node in layer.nodes)
            found[layer.codes] = found.get(layer.codes, 0) + products
    return found


def check(report: Report, bounds: Bounds) -> None:
    """See that an engine is worth having.

    Raises:
        BuildError: Names the node.
    """
    dropped = [one for one in report.unfused if not one.expected]
    if len(dropped) > bounds.unfused:
        nodes = ", ".join(one.node for one in dropped[:5]) + (", ..." if len(dropped) > 5 else "")
        raise BuildError(
            f"{report.graph}: {len(dropped)} of {report.attentions} attentions were not fused ({nodes}), although "
            f"{report.backend} has kernels for their type and head size; they would be slow and hungry. Report this, "
            f"or allow it with --allow-unfused {len(dropped)}"
        )
    if len(report.activation_bytes) != len(report.profiles):
        _LOG.warning(
            "%s: %s says the scratch memory of %d profiles in its log, and the engine has %d; --max-scratch is not "
            "checked for the others",
            report.graph,
            report.backend,
            len(report.activation_bytes),
            len(report.profiles),
        )
    # Not strict: see the warning.
    for profile, size in zip(report.profiles, report.activation_bytes, strict=False):
        if size > bounds.activation_bytes:
            largest, node = report.largest
            raise BuildError(
                f"{report.graph} needs {megabytes(size)} of scratch memory at {profile}, more than the bound of "
                f"{megabytes(bounds.activation_bytes)}; the largest tensor in it, {megabytes(largest)}, is made by "
                f"node {node}. Use fp16 or bf16, a smaller resolution, or raise the bound with --max-scratch"
            )


def check_quantised(report: Report, wanted: Quantisation | None) -> None:
    """See that what a graph says in few bits is computed in few bits, and not decoded first.

    Raises:
        BuildError: Says how many are and how many should be.
    """
    if wanted is None or wanted.by != "lssgen":  # of another tool's graph it is not known how many there should be
        return
    profiles = len(report.profiles)
    attentions = sum(count for kind, count in report.coded.items() if kind.endswith("attention"))
    products = sum(report.coded.values()) - attentions
    for what, found, expected in (
        ("products", products, wanted.products),
        ("attentions", attentions, wanted.attention),
    ):
        if found < expected * profiles:
            coded = ", ".join(f"{count} {kind}" for kind, count in report.coded.items()) or "none"
            raise BuildError(
                f"{report.graph}: {report.backend} computes {found} of {expected * profiles} {what} in {wanted.format} "
                f"({coded}), so the rest would be rounded for nothing; report this, or build the bundle that it was "
                "made from"
            )


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Names of the ONNX nodes that a layer's metadata lists."""
    return tuple(_NODE.findall(metadata))


def _layer(row: str) -> Layer:
    name = row[len("Name: ") :].split(",", 1)[0]
    head, _, metadata = row.partition("Metadata: ")
    outputs = _OUTPUTS.search(head)
    sizes = [_bytes(*match.groups()) for match in _TENSOR.finditer(outputs[1])] if outputs else []
    kind = _KIND.search(head)
    product = "/Conv" if kind is not None and kind[1] == CONVOLUTION else "/MatMul"
    return Layer(name, onnx_nodes(metadata), max(sizes, default=0), _codes(head), product)


def _codes(head: str) -> str:
    """Type of the codes that a layer multiplies: of what goes in, and where that is none, of its weights."""
    kind = _KIND.search(head)
    if kind is None or (kind[1] not in ("gemm", "runtime_fusion", CONVOLUTION) and "mha" not in head.partition(",")[0]):
        return ""
    inputs, constants = (set(_DTYPE.findall(found[1])) if (found := at.search(head)) else set[str]() for at in _READ)
    known = [name for name in _FEW if name in inputs] or [name for name in _FEW if name in constants]
    return known[0].upper() if known else ""


def _bytes(dimensions: str, dtype: str) -> int:
    # For a message only: a type that is not listed counts as Float.
    size = _TYPE_BYTES.get(dtype, 4)
    for axis in filter(None, dimensions.split(",")):
        size *= int(axis)
    return size
