"""A LoRA out of the internet ends in one line, soon: whatever its header, its patterns and its tensors are."""

import contextlib
import json
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from lssgen.errors import LssgenError, ModelError
from lssgen.export.checkpoint import Checkpoint
from lssgen.lora import patterns
from lssgen.lora.asked import Lora
from lssgen.lora.patterns import first_fits

QUERY = "transformer.transformer_blocks.0.attn.to_q"
PARTS = ("transformer", "text_encoder")


def factors(rank: int = 2, name: str = QUERY) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(rank, 16), f"{name}.lora_B.weight": torch.ones(16, rank)}


def kohya(**more: Tensor) -> dict[str, Tensor]:
    name = "lora_unet_transformer_blocks_0_attn_to_q"
    ends = {"lora_down.weight": torch.ones(4, 16), "lora_up.weight": torch.ones(16, 4), **more}
    return {f"{name}.{end}": value for end, value in ends.items()}


def merged(sd3: Path, path: Path) -> float:
    """What every element of the query's weight grows by."""
    plain = Checkpoint(sd3)
    before, after = (
        checkpoint.weights(PARTS).tensor(f"{QUERY}.weight")
        for checkpoint in (plain, plain.with_loras([Lora(path)], PARTS, "transformer"))
    )
    grown = (after - before).flatten()
    torch.testing.assert_close(grown, grown[:1].expand_as(grown))
    return round(float(grown[0]), 4)


def notes(sd3: Path, path: Path) -> str:
    return "\n".join(Checkpoint(sd3).with_loras([Lora(path)], PARTS, "transformer").notes)


@pytest.mark.parametrize(
    ("header", "grown"),
    [
        ({"lora_alpha": "8"}, 8.0),
        ({"network_alpha": "8.0"}, 8.0),
        ({"alpha": "1"}, 1.0),
        ({"lora_alpha": "None", "alpha": "6"}, 6.0),
        ({"ss_network_alpha": "8", "ss_network_dim": "2"}, 2.0),
    ],
)
def test_alpha_in_the_header_counts(sd3: Path, tmp_path: Path, header: dict[str, str], grown: float) -> None:
    """The last one is kohya's, whose converters put its alpha into factors of other names and keep the header."""
    save_file(factors(), tmp_path / "lora.safetensors", header)
    assert merged(sd3, tmp_path / "lora.safetensors") == grown


@pytest.mark.parametrize(
    ("header", "grown"),
    [
        ({"ss_network_alpha": "8", "ss_network_dim": "4"}, 8.0),
        ({"ss_network_alpha": "1"}, 1.0),
        ({"ss_network_alpha": "0", "ss_network_dim": "4"}, 4.0),
        ({"ss_network_alpha": "None", "ss_network_dim": "4"}, 4.0),
    ],
)
def test_alpha_in_the_header_of_kohya_counts(sd3: Path, tmp_path: Path, header: dict[str, str], grown: float) -> None:
    save_file(kohya(), tmp_path / "lora.safetensors", header)
    assert merged(sd3, tmp_path / "lora.safetensors") == grown


def test_alpha_of_a_layer_counts_more_than_the_header(sd3: Path, tmp_path: Path) -> None:
    tensors = kohya(alpha=torch.tensor(1.0))
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"})
    assert merged(sd3, tmp_path / "lora.safetensors") == 1.0


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"lora_alpha": "lots"}, "says 'lots' for lora_alpha; expected a number"),
        ({"lora_alpha": "nan"}, "says 'nan' for lora_alpha"),
        ({"ss_network_alpha": "Dynamic"}, "says 'Dynamic' for ss_network_alpha"),
        ({"ss_network_alpha": "2", "ss_network_dim": "8"}, "says rank 8, but there are factors of rank 4"),
        ({"lora_adapter_metadata": "[" * 100_000}, "lora_adapter_metadata of .* is not what it should be"),
        ({"lora_adapter_metadata": "[]"}, "lora_adapter_metadata of .* is not what it should be"),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": [4]}'}, "for lora_alpha; expected a number"),
    ],
)
def test_header_that_makes_no_sense_is_refused(sd3: Path, tmp_path: Path, header: dict[str, str], said: str) -> None:
    name = "lora_unet_transformer_blocks_0_attn_to_q"
    tensors = {key.replace(name, QUERY) if "adapter" in str(header) else key: value for key, value in kohya().items()}
    save_file(tensors, tmp_path / "lora.safetensors", header)
    with pytest.raises(ModelError, match=said):
        merged(sd3, tmp_path / "lora.safetensors")


def test_rank_that_stands_in_for_an_alpha_is_mentioned(sd3: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(factors(), path)
    assert merged(sd3, path) == 2.0
    assert "lora.safetensors does not say its alpha: it is taken to be the rank" in notes(sd3, path)
    other = {key.replace("_0_", "_1_"): value for key, value in kohya(alpha=torch.tensor(1.0)).items()}
    save_file({**factors(), **other}, path)
    assert "does not say its alpha for 1 of its 2 layers" in notes(sd3, path)
    save_file(factors(), path, {"lora_alpha": "2"})
    assert not notes(sd3, path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{QUERY}.lora_A.weight": torch.ones(0, 16), f"{QUERY}.lora_B.weight": torch.ones(16, 0)}, "LoRA of rank 0"),
        ({**factors(), f"{QUERY}.lora_B.weight": torch.ones(16, 3)}, "the factors of .*to_q do not multiply"),
        ({**factors(), f"{QUERY}.lora_B.weight": torch.ones(16)}, "do not multiply"),
        (kohya(alpha=torch.ones(4)), r"alpha with shape \[4\]; expected one number"),
        (kohya(alpha=torch.ones(0)), r"alpha with shape \[0\]"),
        (kohya(alpha=torch.tensor(float("nan"))), "nan in .*alpha; expected a finite number"),
        ({**factors(), f"{QUERY}.lora_A.weight": torch.full((2, 16), torch.nan)}, "lora_A.weight holds NaN or inf"),
        ({**factors(), f"{QUERY}.lora_B.weight": torch.full((16, 2), torch.inf)}, "lora_B.weight holds NaN or inf"),
        ({**factors(), f"{QUERY}.lora_B.weight": torch.ones(16, 2, dtype=torch.complex64)}, "as complex64"),
        ({**factors(), f"{QUERY}.lora_B.weight": torch.ones(16, 2, dtype=torch.int8)}, "as int8"),
        ({**factors(), **kohya()}, f"changes {QUERY}.weight twice, under two names"),
        ({**factors(), f"{QUERY}.lora_A.other.weight": torch.ones(2, 16)}, f"changes {QUERY} twice"),
        (kohya(dora_scale=torch.ones(1, 16)[:, :4]), "4 values in .*dora_scale, not one for each of .* 16 outputs"),
        ({**factors(), f"{QUERY}.lora_B.bias": torch.ones(3)}, "3 values in .*lora_B.bias"),
        ({**factors(), f"{QUERY}.lora_diag": torch.ones(3)}, "3 values between factors of rank 2"),
        ({f"{QUERY}.alpha": torch.ones(1)}, "it has no LoRA keys at all"),
        ({f"{QUERY}.lora_A.weight": torch.ones(2, 16)}, "keys without a weight:\n  .*lora_A.weight"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_lora_are_refused(sd3: Path, tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=said):
        merged(sd3, tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("hada_w1_a", "a LoHa"),
        ("lokr_w1", "a LoKr"),
        ("lokr_t2", "a LoKr"),
        ("oft_blocks", "an OFT"),
        ("on_input", "an IA3"),
        ("lora_mid.weight", "a LoCon with a Tucker core"),
        ("a1.weight", "a GLoRA"),
        ("diff", "a full difference"),
        ("diff_b", "a full difference"),
        ("w_norm", "norms trained in full"),
        ("lora_E", "an AdaLoRA"),
    ],
)
def test_other_adapters_are_refused_by_their_names(sd3: Path, tmp_path: Path, end: str, name: str) -> None:
    save_file(kohya(**{end: torch.ones(4, 4)}), tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=rf"is {name}.*\({'lora_unet_transformer_blocks_0_attn_to_q'}\.{end}\)"):
        merged(sd3, tmp_path / "lora.safetensors")


def test_dora_of_kohya_is_merged_into_the_rows_of_a_weight(sd3: Path, tmp_path: Path) -> None:
    lengths = torch.rand(16, 1) + 0.5
    save_file(kohya(dora_scale=lengths, alpha=torch.tensor(2.0)), tmp_path / "lora.safetensors")
    changed = Checkpoint(sd3).with_loras([Lora(tmp_path / "lora.safetensors")], PARTS, "transformer")
    found = changed.weights(PARTS).tensor(f"{QUERY}.weight")
    torch.testing.assert_close(found.norm(dim=1), lengths.flatten())
    whole = Checkpoint(sd3).weights(PARTS).tensor(f"{QUERY}.weight") + 2.0
    torch.testing.assert_close(found, whole / whole.norm(dim=1, keepdim=True) * lengths)


def test_merge_that_leaves_no_number_is_refused(sd3: Path, tmp_path: Path) -> None:
    save_file({key: value * 1e30 for key, value in factors().items()}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match="becomes NaN or infinity when its LoRAs are merged"):
        merged(sd3, tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "pattern", [r"(.*)*(.*)*(.*)*(.*)*(.*)*x", r"((\w+\.?)+)+x", r"(.?){900}" + "(.*)*" * 40 + "x"]
)
def test_pattern_that_would_take_for_ever_is_refused_in_time(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"alpha_pattern of it takes more than 1 s to be matched|cannot be matched"):
        first_fits([pattern], [f"{QUERY}.{'a' * 60}"], "alpha_pattern of it")
    assert time.monotonic() - start < 30


def test_patterns_are_matched_as_peft_matches_them() -> None:
    names = ["a.b.to_q", "a.b.to_out.0", "to_q", "x.not_q"]
    found = first_fits([r"to_out\.\d", "to_q", ".*q"], names, "rank_pattern")
    assert found == {"a.b.to_q": "to_q", "a.b.to_out.0": r"to_out\.\d", "to_q": "to_q", "x.not_q": ".*q"}
    assert first_fits(["b.to_q", "^to_q"], names, "rank_pattern") == {"a.b.to_q": "b.to_q", "to_q": "^to_q"}


def header(path: Path, entries: Mapping[str, Any], data: bytes = b"\0" * 64) -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, -8], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [-2, -8], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [2, 8], "data_offsets": [-64, 0]},
        {"dtype": "F32", "shape": [2, 8], "data_offsets": [64, 0]},
        {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 1 << 70]},
        {"dtype": "F32", "shape": [2.0, 8], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [True] * 20, "data_offsets": [0, 4]},
        {"dtype": "Q4", "shape": [2, 8], "data_offsets": [0, 64]},
        {"dtype": ["F32"], "shape": [2, 8], "data_offsets": [0, 64]},
        {"shape": [2, 8]},
        [],
        None,
    ],
    ids=str,
)
def test_header_with_impossible_places_is_refused(sd3: Path, tmp_path: Path, entry: Any) -> None:
    path = header(tmp_path / "lora.safetensors", {f"{QUERY}.lora_A.weight": entry, f"{QUERY}.lora_B.weight": entry})
    with pytest.raises(ModelError, match="cannot be read as a LoRA"):
        merged(sd3, path)


@pytest.mark.slow
def test_million_keys_are_refused_in_seconds(sd3: Path, tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    path = header(tmp_path / "lora.safetensors", {f"lora_unet_{n}.lora_up.weight": entry for n in range(1_000_000)})
    with pytest.raises(ModelError, match="it has 1000000 tensors"):
        merged(sd3, path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "there is no LoRA .*; give a safetensors file, or a folder with one"),
        (lambda path: path.mkdir(), "has no LoRA; expected adapter_model.safetensors or pytorch_lora"),
        (
            lambda path: (path / "unet").mkdir(parents=True) or (path / "adapter_model.bin").touch(),
            "only a pickled LoRA",
        ),
        (lambda path: path.mkdir() or [(path / f"{n}.safetensors").touch() for n in "ab"], "has 2 safetensors files"),
        (lambda path: path.write_bytes(b""), "cannot be read as a LoRA"),
    ],
)
def test_place_without_a_lora_is_refused(sd3: Path, tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path / "lora")
    with pytest.raises(ModelError, match=said):
        merged(sd3, tmp_path / "lora")


def test_pipe_is_refused(sd3: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match="cannot be read as a LoRA; give a safetensors file"):
        merged(sd3, tmp_path / "lora.safetensors")


WHOLE = save(kohya(alpha=torch.tensor(1.0)), {"lora_adapter_metadata": "{}", "ss_network_dim": "4"})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(WHOLE) - 1), put=st.binary(min_size=1, max_size=8))
def test_damaged_lora_is_refused_or_merged_into_numbers(sd3: Path, tmp_path: Path, at: int, put: bytes) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(WHOLE[:at] + put + WHOLE[at + len(put) :])
    with contextlib.suppress(LssgenError):
        changed = Checkpoint(sd3).with_loras([Lora(path)], PARTS, "transformer")
        assert changed.weights(PARTS).tensor(f"{QUERY}.weight").isfinite().all()
