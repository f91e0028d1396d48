"""What the branches of a run hear: prompts, negative prompts, and what stands for one that was not given."""

from collections.abc import Mapping

import numpy as np

from lssgen.engines.base import Engine
from lssgen.manifest import Manifest
from lssgen.ports import Array
from lssgen.runtime.loras import NO_LORAS, TextLoras
from lssgen.runtime.options import Request
from lssgen.runtime.text import Lengths, TextEncoder
from lssgen.runtime.weighting import weighted

Conditioning = Mapping[str, Mapping[str, Array]]
"""Arrays that one picture's branches hear, by branch and output of the text graph, without a batch axis."""


class Conditioner:
    """Encodes what a picture's branches hear.

    Args:
        manifest: Says what stands for a negative prompt that was not given.
        encoder: Encodes one prompt.
    """

    def __init__(self, manifest: Manifest, encoder: TextEncoder) -> None:
        self._zeros = manifest.empty_negative == "zeros"
        self._encoder = encoder

    def negative(self, request: Request) -> str | None:
        """The text that the negative branch hears; None where there is no such branch, or where it hears zeros."""
        if "negative" not in request.branches:
            return None
        if request.negative_prompt is None and self._zeros:
            return None
        return request.negative_prompt or ""

    def lengths(self, request: Request, prompt: str) -> Lengths:
        """Tokens that a picture's prompts fill up to: all branches go through the network together.

        Raises:
            PromptError: A prompt cannot be read, or has impossible weights.
        """
        own = self._encoder.lengths(prompt, request.prompt_weighting)
        negative = self.negative(request)
        if negative is None:
            return own
        return tuple(map(max, own, self._encoder.lengths(negative, request.prompt_weighting)))

    def tokens(self, request: Request, prompt: str) -> int:
        """Tokens of the prompt and the negative one in the first encoder, filling left out."""
        texts, rules = (prompt, self.negative(request)), request.prompt_weighting
        return sum(self._encoder.tokens(weighted(text, rules).text) for text in texts if text is not None)

    def losses(self, request: Request, prompt: str) -> list[str]:
        """Sentences about prompts that are not heard in full.

        Raises:
            PromptError: A prompt cannot be read.
        """
        texts = (prompt, self.negative(request))
        rules = request.prompt_weighting
        return [said for text in texts if text for said in self._encoder.losses(weighted(text, rules).text)]

    def heard(
        self, engine: Engine, request: Request, prompt: str, lengths: Lengths, loras: TextLoras = NO_LORAS
    ) -> Conditioning:
        """What the branches of a picture hear.

        Args:
            engine: The loaded "text" graph.
            request: The run.
            prompt: The picture's.
            lengths: At least `self.lengths(request, prompt)`.
            loras: LoRAs that encode it, where the graph has slots for them.

        Raises:
            BundleError: The text graph does not fit the manifest.
            PromptError: Weights leave nothing of a prompt.
        """
        rules, negative = request.prompt_weighting, self.negative(request)
        text = {"positive": self._encoder.encode(engine, prompt, lengths, rules, loras)}
        if negative is not None:
            text["negative"] = self._encoder.encode(engine, negative, lengths, rules, loras)
        elif "negative" in request.branches:
            text["negative"] = {port: np.zeros_like(value) for port, value in text["positive"].items()}
        return text
