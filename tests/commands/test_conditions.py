"""Pictures that condition a network, on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_bundle as toy_module
from PIL import Image

from lssgen.commands.run import main
from lssgen.manifest import Picture
from lssgen.ports import Port
from lssgen.testing import step_network

MASK = (Port("control", "float32", ("batch", 1, "height", "width")), Picture(name="depth", read_as="mask"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose step adds a mask to what it sees; the command runs beside it."""
    step = toy_module.GRAPHS["step"].replace(
        "float[batch, 8] row", "float[batch, 8] row, float[batch, 1, height, width] control"
    )
    step = step.replace("u = Mul (c_in, latent)", "seen = Add (latent, control)\n            u = Mul (c_in, seen)")
    like = step_network(lambda ask: ask.u, history=1, extra=[MASK])
    monkeypatch.setattr(toy_module, "GRAPHS", {**toy_module.GRAPHS, "step": step})
    monkeypatch.setattr(toy_module, "LIKE", {**toy_module.LIKE, "step": like})
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Image.new("L", (64, 64), 255).save("white.png")
    Image.new("L", (64, 64), 0).save("black.png")
    return toy_module.toy_bundle(tmp_path / "b").folder


def flags(folder: Path) -> list[str]:
    return ["a", "--bundle", str(folder), "--scaling-space", "latent", "--threads", "1", "--quiet"]


def test_a_condition_reaches_the_network_by_its_name_and_is_on_record(folder: Path) -> None:
    for name in ("white", "black"):
        assert main([*flags(folder), "--condition", f"depth={name}.png", "-o", f"on-{name}.png"]) == 0
    white, black = (np.asarray(Image.open(f"on-{name}.png")) for name in ("white", "black"))
    assert not np.array_equal(white, black)
    assert set(json.loads(Path("on-white.run.json").read_text())["start"]) == {"depth=white.png"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "takes the pictures depth; none came"),
        (["--condition", "dept=white.png"], "takes the pictures depth; dept came"),
        (["--condition", "depth=white.png", "--condition", "depth=black.png"], "--condition depth was given twice"),
        (["--condition", "depth=none.png"], "none.png cannot be read"),
    ],
)
def test_a_condition_that_is_wrong_is_one_line(
    folder: Path, given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(folder), *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
