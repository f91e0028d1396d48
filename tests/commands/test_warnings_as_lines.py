"""A warning is a line, and the same one is said once."""

import logging
import warnings

import pytest

from lssgen.commands import common
from lssgen.commands.common import warnings_as_lines


@pytest.mark.filterwarnings("always")
def test_the_same_warning_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "REMEMBERED", 2)
    with caplog.at_level(logging.WARNING, "lssgen"), warnings_as_lines():
        for message in ("a", "b", "a", "b", "c", "c"):
            warnings.warn_explicit(message, UserWarning, "x", 0, registry=None)
    assert [record.getMessage() for record in caplog.records] == [
        "a",
        "b",
        "c",
        "c",
    ]  # and no more than so many are kept
