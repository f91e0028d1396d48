"""The runtime's tokenizers against transformers, for any text."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import factory
import factory_families
import factory_zimage
import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_bundle import FACTS

from lssgen.bundle import Bundle
from lssgen.engines.base import Engine
from lssgen.engines.demand import Demand
from lssgen.export.tokenizers import convert_tokenizer
from lssgen.models.nets.cogview4 import MULTIPLE
from lssgen.models.nets.recipe import TokenRule
from lssgen.ports import Port
from lssgen.runtime.text import TextEncoder
from lssgen.testing import FakeBackend, FakeModel, Network, fake_bundle

pytestmark = pytest.mark.filterwarnings("ignore::lssgen.runtime.text.PromptWarning")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A tokenizer as a family uses it."""

    make: Callable[[Path], None]
    cls: str
    rule: TokenRule


def kind(make: Callable[[Path], None], cls: str, length: int, **rule: Any) -> Kind:
    return Kind(make=make, cls=cls, rule=TokenRule(component="tokenizer", port="ids", length=length, **rule))


KINDS = {
    "clip": kind(lambda folder: factory.clip_tokenizer(folder, pad=factory.CLIP_END), "CLIPTokenizer", 77),
    "clip of sdxl": kind(lambda folder: factory.clip_tokenizer(folder, pad="!"), "CLIPTokenizer", 77),
    "t5": kind(factory.t5_tokenizer, "T5TokenizerFast", 256),
    "glm": kind(
        factory_families.glm_tokenizer,
        "PreTrainedTokenizerFast",
        1024,
        mask_port="mask",
        pad_to="longest",
        pad_side="left",
        pad_multiple=MULTIPLE,
    ),
    "qwen": kind(
        factory_zimage.qwen_tokenizer, "Qwen2Tokenizer", 512, mask_port="mask", pad_to="longest", pad_multiple=32
    ),
}

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="()[]{}:.,!?'-_<|> \n\taeiouAEIOU0123456789", max_size=60),
    st.sampled_from(
        [
            "",
            " ",
            "</s>",
            "<|endoftext|> x",
            "<|im_start|>system\r\n",
            "[gMASK]",
            "don't",
            "Ⅷ ﬁ \uff57\uff49\uff44\uff45",
            "🙂" * 40,
            "circle " * 1200,
        ]
    ),
)


@dataclass(frozen=True)
class Both:
    """The same tokenizer twice."""

    rule: TokenRule
    original: Any
    encoder: TextEncoder
    engine: Engine

    def expected(self, text: str) -> tuple[list[int], list[int]]:
        """Ids and mask as the diffusers pipeline of the family makes them."""
        if self.rule.pad_to == "length":
            came = self.original(text, padding="max_length", max_length=self.rule.length, truncation=True)
            return came.input_ids, came.attention_mask
        came = self.original(text, padding="longest", max_length=self.rule.length, truncation=True)
        # An axis of no tokens fits no graph.
        missing = -len(came.input_ids) % self.rule.pad_multiple or self.rule.pad_multiple * (not came.input_ids)
        ids, mask = [self.original.pad_token_id] * missing, [0] * missing
        if self.rule.pad_side == "left":
            return ids + came.input_ids, mask + came.attention_mask
        return came.input_ids + ids, came.attention_mask + mask


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    made, folder = KINDS[request.param], tmp_path_factory.mktemp("tokenizer")
    made.make(folder / "tokenizer")
    ports = [made.rule.port, *([made.rule.mask_port] if made.rule.mask_port else [])]
    shape = ("batch", "tokens")
    echo = Network(
        inputs=tuple(Port(port, "int64", shape) for port in ports),
        outputs=tuple(Port(f"{port}_heard", "float32", shape) for port in ports),
        run=lambda given: {f"{port}_heard": given[port].astype(np.float32) for port in ports},
        runs="prompt",
    )
    bundle = fake_bundle(folder / "bundle", FakeModel(facts=FACTS, networks={"text": echo}))
    tokens = convert_tokenizer(folder / "tokenizer", made.cls, made.rule, bundle.folder / "own.json", "own.json")
    bundle = Bundle(bundle.folder, replace(bundle.manifest, tokenizers=(tokens,)))
    backend = FakeBackend({"text": echo})
    encoder, engine = TextEncoder(bundle, backend), backend.open(bundle, Demand())["text"]
    original = getattr(transformers, made.cls).from_pretrained(folder / "tokenizer")
    return Both(made.rule, original, encoder, engine)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_ids_and_mask_are_those_of_transformers(both: Both, text: str) -> None:
    ids, mask = both.expected(text)
    heard = both.encoder.encode(both.engine, text, both.encoder.lengths(text))
    assert heard["ids_heard"].tolist() == ids
    assert "mask_heard" not in heard or heard["mask_heard"].tolist() == mask
