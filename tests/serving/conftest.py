"""Servers remember how long steps take; those of tests do not do so in the user's home."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSSGEN_HOME", str(tmp_path_factory.mktemp("home")))
        yield
