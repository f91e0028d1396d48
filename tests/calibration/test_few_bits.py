"""Number formats: what rounding costs, whatever the numbers are."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lssgen.calibration.formats import FORMATS, format_for
from lssgen.calibration.numbers import (
    BLOCK,
    FP4_MOST,
    FP4_NOISE,
    FP8_MOST,
    FP8_NOISE,
    decoded,
    fp4_blocks,
    fp8_tensor,
    int8_columns,
    signed_scale,
    unsigned_scale,
)
from lssgen.errors import CalibrationError

WEIGHTS = arrays(np.float32, (32, 4), elements=st.floats(-1e4, 1e4, width=32))


@given(WEIGHTS)
def test_int8_is_at_most_half_a_step_off(weight: np.ndarray) -> None:
    coded = int8_columns(weight)
    half = coded.scales / 2
    assert (np.abs(decoded(coded) - weight) <= half * (1 + 1e-5) + 1e-6).all()


@given(WEIGHTS)
def test_fp8_is_at_most_a_sixteenth_off_or_half_its_smallest_step(weight: np.ndarray) -> None:
    coded = fp8_tensor(weight)
    error = np.abs(decoded(coded) - weight)
    assert (error <= np.maximum(np.abs(weight) / 16, 2.0**-10 * float(coded.scales)) * (1 + 1e-5)).all()


@given(WEIGHTS)
def test_nvfp4_is_at_most_a_sixth_of_its_blocks_peak_off(weight: np.ndarray) -> None:
    peaks = np.repeat(np.abs(weight.reshape(-1, BLOCK, 4)).max(axis=1), BLOCK, axis=0)
    # Between 4 and 6 codes are 2 apart: half of that, of 6. A scale in E4M3 may be a sixteenth off besides, and where
    # one block is a millionth of another it has few steps left, or none.
    least = np.abs(weight).max(initial=0.0) * 2.0**-9 / FP8_MOST
    assert (np.abs(decoded(fp4_blocks(weight)) - weight) <= peaks * (1 / 6 + 1 / 12) + FP4_MOST * least + 1e-3).all()


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 100.0])
def test_nvfp4_rounds_small_weights_as_it_rounds_large_ones(size: float) -> None:
    weight = size * np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    found = np.square(decoded(fp4_blocks(weight)) - weight).mean() / np.square(weight).mean()
    # The scale of scales has a least value, so that those of weights of 1e-4 have fewer steps.
    assert found == pytest.approx(FP4_NOISE, rel=0.2)


def test_columns_of_zeros_and_of_tiny_numbers_stay_finite() -> None:
    weight = np.zeros((16, 3), np.float32)
    weight[0, 1], weight[:, 2] = 1e-30, 1.0
    for code in (int8_columns, fp8_tensor, fp4_blocks):
        found = decoded(code(weight))
        assert np.isfinite(found).all()
        assert (found[:, 0] == 0).all()


def test_the_predicted_noise_of_floating_point_is_that_of_normal_numbers() -> None:
    numbers = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    for code, share in ((fp8_tensor, FP8_NOISE), (fp4_blocks, FP4_NOISE)):
        found = np.square(decoded(code(numbers)) - numbers).mean() / np.square(numbers).mean()
        assert found == pytest.approx(share, rel=0.1)  # of one draw, with scales by its own largest number


def test_scales_are_coded_as_they_are_stored() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    for kind in (np.float16, ml_dtypes.bfloat16):
        coded = int8_columns(weight, kind)
        assert (coded.scales.astype(kind).astype(np.float32) == coded.scales).all()
        # A scale rounded down lets the largest number reach beyond its last code, by a 256th at most.
        assert np.abs(decoded(coded) - weight).max() <= coded.scales.max() * (0.5 + 127 / 256)


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_zero_is_a_code_and_the_ends_are_within(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    scale = unsigned_scale(low, high)
    assert 0 <= scale.zero <= 255
    assert (0 - scale.zero) * scale.scale <= max(min(low, 0), -1e9) + scale.scale
    assert (255 - scale.zero) * scale.scale >= max(high, 0) - scale.scale
    assert signed_scale(max(abs(low), abs(high))).zero == 0


@pytest.mark.parametrize(
    ("form", "engine", "said"),
    [
        ("fp8", "onnxruntime", "does not compute in fp8; it takes int8, int8-weights"),
        ("nvfp4", "openvino", "does not compute in nvfp4; it takes int8, int8-weights"),
        ("int8", "onnxruntime-cuda", "no format is made for the engine 'onnxruntime-cuda'; choose one of onnxruntime"),
        ("int3", "onnxruntime", "there is no format 'int3'; choose one of int8, fp8, nvfp4, int8-weights"),
    ],
)
def test_a_format_that_an_engine_lacks_is_refused_with_those_it_has(form: str, engine: str, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        format_for(form, engine)  # type: ignore[arg-type]


def test_every_format_is_some_engines_and_says_what_it_costs() -> None:
    assert all(one.engines and one.costs for one in FORMATS.values())
    assert not any(one.attention for name, one in FORMATS.items() if name.startswith("int8"))  # int8 attention: never
