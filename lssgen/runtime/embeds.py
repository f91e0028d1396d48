"""Embeddings of prompts from a file, in place of a text encoder: one that is too large to run beside the rest.

Names are those of the text's inputs of the step, which are diffusers': `prompt_embeds`, `pooled_prompt_embeds`, and the
same with `negative_` in front for what guidance moves away from. Every array begins with an axis that counts prompts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save

from lssgen.durable import write_whole
from lssgen.errors import PromptError
from lssgen.files import read_regular
from lssgen.manifest import Manifest, Text
from lssgen.ports import Array, Port
from lssgen.runtime.conditioning import Conditioning
from lssgen.runtime.options import Request

NEGATIVE = "negative_"
"""Beginning of the names of what guidance moves away from."""

OTHER_NAMES: Mapping[str, str] = {"prompt_attention_mask": "prompt_mask", "prompt_embeds_mask": "prompt_mask"}
"""Names of the step, by diffusers' for the same, where these differ from pipeline to pipeline."""

MOST_BYTES = 2**32
"""Largest file; a thousand prompts of the largest language models fit."""

_TYPES: Mapping[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip
"""NumPy's types, by those of safetensors. It has no bfloat16, which is the upper half of a float32."""


@dataclass(frozen=True, slots=True)
class Embeds:
    """Embeddings of prompts.

    Attributes:
        arrays: (prompts, ...) float32 by name; of a negative name also (1, ...), for all prompts.
        prompts: Texts that they were made from, for the record; empty where nobody says.
        source: Origin, for messages.
        said: Further texts of the file, by name.
    """

    arrays: Mapping[str, Array]
    prompts: tuple[str, ...] = ()
    source: str = "prompt_embeds"
    said: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def count(self) -> int:
        """Number of prompts."""
        return max((len(array) for array in self.arrays.values()), default=0)


def embeds_of(given: Mapping[str, Array] | str | Path) -> Embeds:
    """Embeddings as a caller gives them: arrays by name, or a file.

    Raises:
        PromptError: The file cannot be read, or an array holds no numbers.
    """
    if isinstance(given, str | Path):
        return read_embeds(Path(given))
    if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PromptError(f"prompt_embeds is a {type(given).__name__}; it must be a file or arrays by name")
    return Embeds({name: _numbers(f"prompt_embeds {name}", array) for name, array in given.items()})


def read_embeds(path: Path) -> Embeds:
    """Embeddings from a safetensors file; numbers of any type become float32.

    Raises:
        PromptError: It cannot be read, is not a safetensors file, or holds other types than numbers.
    """
    try:
        data = read_regular(path, MOST_BYTES)
        tensors = safetensors.deserialize(data)
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror})") from error
    except safetensors.SafetensorError as error:
        raise PromptError(f"{path} is not a whole safetensors file: {error}") from error
    arrays = {name: _decoded(f"{name} of {path}", entry) for name, entry in tensors}
    said = _metadata(data)
    return Embeds(arrays, _prompts(said), str(path), said)


def write_embeds(embeds: Embeds, path: Path) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        PromptError: It cannot be written.
    """
    said = {**embeds.said, "prompts": json.dumps(embeds.prompts)}
    try:
        write_whole(path, save({name: np.ascontiguousarray(array) for name, array in embeds.arrays.items()}, said))
    except OSError as error:
        raise PromptError(f"{path} cannot be written: {error.strerror}; choose another place") from error


def heard_from(manifest: Manifest, request: Request, embeds: Embeds) -> list[Conditioning]:
    """What the branches of each prompt hear.

    Raises:
        PromptError: A name is missing or unknown; or a shape or a number does not fit the network.
    """
    wanted = {port.name: port for port in _ports(manifest)}
    embeds = replace(embeds, arrays={_own_name(name, wanted): array for name, array in embeds.arrays.items()})
    _see_names(manifest, embeds, wanted)
    count = _see_shapes(manifest, embeds, wanted)
    negative = _negative(manifest, request, embeds, wanted)
    found: list[Conditioning] = []
    for prompt in range(count):
        heard = {"positive": {name: embeds.arrays[name][prompt] for name in wanted}}
        if negative is not None:
            heard["negative"] = {name: array[prompt % len(array)] for name, array in negative.items()}
        found.append(heard)
    return found


def _ports(manifest: Manifest) -> Iterator[Port]:
    """What a text encoder would have to give for one prompt, without the axes of branches and pictures."""
    step = manifest.graphs["step"]
    for port in step.inputs:
        feed = step.feeds.get(port.name)
        if isinstance(feed, Text):
            yield Port(feed.output, port.dtype, port.shape[2:])


def _own_name(name: str, wanted: Mapping[str, Port]) -> str:
    """A name of diffusers as this network has it."""
    plain = name.removeprefix(NEGATIVE)
    own = OTHER_NAMES.get(plain, plain)
    return f"{NEGATIVE * name.startswith(NEGATIVE)}{own}" if own in wanted and plain not in wanted else name


def _see_names(manifest: Manifest, embeds: Embeds, wanted: Mapping[str, Port]) -> None:
    known = {*wanted, *(f"{NEGATIVE}{name}" for name in wanted)}
    missing = [name for name in wanted if name not in embeds.arrays]
    if unknown := sorted(embeds.arrays.keys() - known):
        missing.append(f"not {unknown[0]}")
    if missing:
        raise PromptError(
            f"{embeds.source} holds {', '.join(embeds.arrays) or 'nothing'}; {manifest.facts.name} takes "
            f"{', '.join(map(str, wanted.values()))} of every prompt, and the same as {NEGATIVE}...: {missing[0]} "
            f"{'is missing' if not unknown else 'is not among them'}"
        )


def _see_shapes(manifest: Manifest, embeds: Embeds, wanted: Mapping[str, Port]) -> int:
    """Number of prompts, where everything has the shape of so many and of one length."""
    count, sizes = embeds.count, dict[str, int]()
    if not any(tokens.pad_to == "longest" for tokens in manifest.tokenizers):
        sizes |= manifest.token_axes
    for name, array in embeds.arrays.items():
        port = wanted[name.removeprefix(NEGATIVE) if name not in wanted else name]
        own = dict(zip(port.shape, array.shape[1:], strict=False))
        sizes = {**{axis: size for axis, size in own.items() if isinstance(axis, str)}, **sizes}
        fits = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.shape) if own else port.shape
        many = (count, 1) if name not in wanted else (count,)
        if array.shape[1:] != fits or not len(array) or len(array) not in many:
            raise PromptError(
                f"{name} of {embeds.source} has the shape {array.shape}; {manifest.facts.name} takes "
                f"({count or 1}, {', '.join(map(str, fits))}) here"
            )
        if not np.isfinite(array).all():
            raise PromptError(f"{name} of {embeds.source} holds NaN or infinity; encode the prompt again")
    return count


def _negative(
    manifest: Manifest, request: Request, embeds: Embeds, wanted: Mapping[str, Port]
) -> dict[str, Array] | None:
    """What the negative branch hears; None where there is none."""
    given = {name: embeds.arrays[f"{NEGATIVE}{name}"] for name in wanted if f"{NEGATIVE}{name}" in embeds.arrays}
    if request.negative_prompt is not None:
        raise PromptError(
            f"negative_prompt is a text, and {embeds.source} takes the place of what would encode it: give its "
            f"embeddings there, as {NEGATIVE}{next(iter(wanted))}"
        )
    if given and len(given) < len(wanted):
        missing = next(name for name in wanted if name not in given)
        raise PromptError(f"{embeds.source} holds {NEGATIVE}{next(iter(given))}, but no {NEGATIVE}{missing}")
    if "negative" not in request.branches:
        return None
    if not given and manifest.empty_negative != "zeros":
        raise PromptError(
            f"{manifest.facts.name} is guided away from a negative prompt, the empty one included, and {embeds.source} "
            f"has no {NEGATIVE}{next(iter(wanted))}: encode it too, or switch guidance off (guidance_scale 1)"
        )
    return given or {name: np.zeros_like(embeds.arrays[name][:1]) for name in wanted}


def prompts_with(embeds: Embeds, prompts: Sequence[str] | None) -> list[str]:
    """Texts for the record, one for each prompt: those of the caller, or else of the file, or empty ones.

    Raises:
        PromptError: There are as many neither as prompts nor one.
    """
    texts = list(embeds.prompts) if prompts is None else list(prompts)
    if len(texts) == 1 or not texts:
        return (texts or [""]) * embeds.count
    if len(texts) != embeds.count:
        raise PromptError(
            f"{embeds.source} holds {embeds.count} prompts, and {len(texts)} texts came for them; give as many, or none"
        )
    return texts


def _decoded(what: str, entry: Mapping[str, object]) -> Array:
    kind, shape, data = str(entry["dtype"]), entry["shape"], entry["data"]
    assert isinstance(shape, list) and isinstance(data, bytes | bytearray)  # noqa: PT018  as the library promises
    sizes = [int(size) for size in shape]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if kind == "BF16":
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(sizes)
    if kind not in _TYPES or prod(sizes) * np.dtype(_TYPES[kind]).itemsize != len(data):
        raise PromptError(f"{what} is of the type {kind}; give float32, float16 or bfloat16")
    return _numbers(what, np.frombuffer(data, _TYPES[kind]).reshape(sizes))


def _numbers(what: str, array: object) -> Array:
    """Numbers as float32; those that it cannot hold become infinite, and are refused as that."""
    values = np.asarray(array)
    if values.dtype.kind not in "fiub":
        raise PromptError(f"{what} holds no numbers, but {values.dtype}; give float32 arrays")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _metadata(data: bytes) -> dict[str, str]:
    """What a file says beside its tensors; the library has read it, but hands out the tensors only."""
    said = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    return {str(key): str(value) for key, value in said.items()}


def _prompts(said: Mapping[str, str]) -> tuple[str, ...]:
    """The prompts that a file was made from, where it was `lssgen encode` that wrote it."""
    try:
        found = json.loads(said.get("prompts", "[]"))
    except ValueError:  # somebody else's word for something else
        return ()
    texts: list[object] = found if isinstance(found, list) else []  # pyright: ignore[reportUnknownVariableType]
    return tuple(text for text in texts if isinstance(text, str))
