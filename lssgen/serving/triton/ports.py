"""What the model takes and gives, as data: the configuration is written from it, requests are read by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TritonType = Literal["TYPE_STRING", "TYPE_INT32", "TYPE_INT64", "TYPE_UINT64", "TYPE_UINT8", "TYPE_FP32", "TYPE_BOOL"]


@dataclass(frozen=True, slots=True)
class TritonPort:
    """A tensor of the model.

    Attributes:
        type: Type in Triton's words.
        dims: Shape; -1 is any.
        optional: True where a request may leave it out.
    """

    type: TritonType
    dims: tuple[int, ...] = (1,)
    optional: bool = True


INPUTS: Mapping[str, TritonPort] = {
    "prompt": TritonPort("TYPE_STRING", optional=False),
    "negative_prompt": TritonPort("TYPE_STRING"),
    "n": TritonPort("TYPE_INT32"),
    "seed": TritonPort("TYPE_UINT64"),
    "width": TritonPort("TYPE_INT32"),
    "height": TritonPort("TYPE_INT32"),
    "num_inference_steps": TritonPort("TYPE_INT32"),
    "guidance_scale": TritonPort("TYPE_FP32"),
    "start_sigma": TritonPort("TYPE_FP32"),
    "deadline_ms": TritonPort("TYPE_INT32"),
    "max_latency_ms": TritonPort("TYPE_INT32"),
    "previews": TritonPort("TYPE_BOOL"),
    "options": TritonPort("TYPE_STRING"),
}
"""Inputs. "options" is a JSON object with further words of `lssgen.runtime.Options`."""

OUTPUTS: Mapping[str, TritonPort] = {
    "kind": TritonPort("TYPE_STRING"),
    "index": TritonPort("TYPE_INT32"),
    "seed": TritonPort("TYPE_UINT64"),
    "image": TritonPort("TYPE_STRING"),
    "pixels": TritonPort("TYPE_UINT8", (-1, -1, 3)),
    "parameters": TritonPort("TYPE_STRING"),
}
"""Outputs of every response: "kind" is "preview" or "picture", "image" a PNG with its mark, "pixels" the same as
(height, width, RGB). Those that a request does not ask for are not made."""

RUN_WORDS = ("negative_prompt", "seed", "width", "height", "num_inference_steps", "guidance_scale", "start_sigma")
"""Inputs that are words of a run."""
