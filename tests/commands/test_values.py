"""Values of flags, from text."""

from argparse import ArgumentTypeError

import pytest

from lssgen.commands.values import integer, number, number_or, one_of, rows_first, several, size, within


@pytest.mark.parametrize(
    ("text", "sides"), [("512", (512, 512)), ("1280x768", (1280, 768)), ("640X 480", (640, 480)), ("0x0", (0, 0))]
)
def test_a_size_is_a_side_or_width_by_height(text: str, sides: tuple[int, int]) -> None:
    assert size(text) == sides
    assert rows_first(text) == sides[::-1]


@pytest.mark.parametrize("text", ["", "1024x", "x1024", "big", "1x2x3", "-512", "51.2", "512,512"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a size; write 1024, or 1280x768 for width x height"):
        size(text)


def test_several_values_have_commas_between_them() -> None:
    assert several(number)("1, 0.5,.25") == (1.0, 0.5, 0.25)
    assert several(rows_first)("512,768x1024") == ((512, 512), (1024, 768))
    with pytest.raises(ArgumentTypeError, match="'' is not a whole number"):
        several(integer)("1,")


def test_a_number_that_is_too_small_is_refused() -> None:
    assert within(0, None, integer)("0") == 0
    assert within(1, None, several(integer))("1,4") == (1, 4)
    with pytest.raises(ArgumentTypeError, match="1,0 is too small; give 1 or more"):
        within(1, None, several(integer))("1,0")


def test_a_word_that_is_misspelt_is_told_its_neighbour() -> None:
    assert one_of(("latent", "pixel"))("pixel") == "pixel"
    with pytest.raises(ArgumentTypeError, match="there is no 'pixl'; did you mean pixel"):
        one_of(("latent", "pixel"))("pixl")
    with pytest.raises(ArgumentTypeError, match="choose one of latent, pixel"):
        one_of(("latent", "pixel"))("?")


def test_a_word_may_stand_in_the_place_of_a_number() -> None:
    read = number_or(("own", "auto"))
    assert (read("0.5"), read("auto")) == (0.5, "auto")
    with pytest.raises(ArgumentTypeError, match="'later' is not a number; nor is it own or auto"):
        read("later")
