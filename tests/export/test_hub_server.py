"""The hub's own client against a server that speaks its API: what is fetched, how it goes on, and what is said."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Thread
from time import sleep

import pytest
from hub_server import Hub, Repo, serving
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from lssgen.errors import FetchError, UnknownModelError
from lssgen.export import repository, transfer
from lssgen.export.hub import find_model, needed_files
from lssgen.export.remote import HubFile, hub_file, snapshot, terms_said, without_secrets
from lssgen.export.repository import Terms, terms_of_folder

NAME = "somebody/model"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LARGE = bytes(range(256)) * 1200
"""Three hundred kilobytes, in five chunks."""


def every(names: list[str]) -> list[str]:
    return names


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    """A hub with one small repository, which the client asks, with a cache of its own."""
    files = {"model_index.json": b"{}", WEIGHTS: LARGE, "README.md": b"# A model"}
    with serving({NAME: Repo(files, card={"license": "apache-2.0"})}) as server:
        use(server, tmp_path / "cache", monkeypatch)
        yield server


def use(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    for module in (file_download, _http, repository):
        monkeypatch.setattr(module, "time", _Hurry)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))


class _Hurry:
    """A clock whose pauses take no time."""

    time = staticmethod(__import__("time").time)
    sleep = staticmethod(lambda _: None)


def kept(cache: Path) -> list[int]:
    """Sizes of the beginnings of files that are kept."""
    return [path.stat().st_size for path in cache.rglob(f"*{transfer.PARTIAL}")]


def test_what_is_fetched_is_what_the_hub_has(hub: Hub) -> None:
    folder = snapshot(NAME, None, every)
    assert folder.name == hub.repos[NAME].commit
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == set(hub.repos[NAME].files)
    assert (folder / WEIGHTS).read_bytes() == LARGE


def test_nothing_is_fetched_twice(hub: Hub) -> None:
    snapshot(NAME, None, every)
    before = len(hub.contents())
    snapshot(NAME, None, every)
    assert (before, len(hub.contents())) == (1, 1)


def test_files_that_are_not_chosen_stay_on_the_hub(hub: Hub) -> None:
    folder = snapshot(NAME, None, lambda _: ["model_index.json"])
    assert hub.contents() == []
    assert not (folder / WEIGHTS).exists()


def test_broken_connection_goes_on_where_it_broke(hub: Hub) -> None:
    hub.faults[:] = ["cut", "cut"]
    folder = snapshot(NAME, None, every)
    assert (folder / WEIGHTS).read_bytes() == LARGE
    ranges = [one.range for one in hub.contents()]
    assert ranges[0] == ""
    assert all(one.startswith("bytes=") and one != "bytes=0-" for one in ranges[1:])


def test_hub_that_says_nothing_for_long_is_asked_again_for_the_rest(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults[:] = ["slow"]
    assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE
    first, second = hub.contents()
    assert (first.range, second.range[:6]) == ("", "bytes=")


def test_hub_that_dies_leaves_what_the_next_run_goes_on_with(hub: Hub, tmp_path: Path) -> None:
    """The hub's client itself would delete it."""
    hub.faults[:] = ["cut", *["down"] * 20]
    with pytest.raises(FetchError, match=rf"{NAME} could not be fetched .*; what came is kept, .*run this again"):
        snapshot(NAME, None, every)
    (size,) = kept(tmp_path)
    assert 0 < size < len(LARGE)
    hub.faults.clear()
    assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE
    assert hub.contents()[-1].range == f"bytes={size}-"
    assert kept(tmp_path) == []


def test_ctrl_c_leaves_what_the_next_run_goes_on_with(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[int] = []
    add = transfer.Transfer.add

    def interrupted(self: transfer.Transfer, count: int) -> None:
        came.append(count)
        if sum(came) > 2**16:
            raise KeyboardInterrupt
        add(self, count)

    monkeypatch.setattr(transfer.Transfer, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        snapshot(NAME, None, every)
    monkeypatch.undo()
    use(hub, tmp_path / "cache", monkeypatch)
    (size,) = kept(tmp_path)
    assert size > 0
    assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE
    assert hub.contents()[-1].range == f"bytes={size}-"


def test_command_that_is_told_to_stop_ends_and_its_next_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    """By SIGTERM, which goes the way of Ctrl-C: a shell may have its background jobs ignore SIGINT."""
    code = (
        "import sys; from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 2**16\n"
        "from lssgen.commands.common import run; from lssgen.export.remote import snapshot\n"
        f"sys.exit(run('x', lambda: print(snapshot({NAME!r}, None, list))))"
    )
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    hub.faults[:] = ["slow"]
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **own}, stderr=subprocess.PIPE) as process:
        for _ in range(1000):
            if any(kept(tmp_path)):
                break
            sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert b"x: stopped" in (process.stderr.read() if process.stderr else b"")
    (size,) = kept(tmp_path)
    assert 0 < size < len(LARGE)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True)
    assert (Path(done.stdout.strip()) / WEIGHTS).read_bytes() == LARGE
    assert hub.contents()[-1].range == f"bytes={size}-"


@pytest.mark.usefixtures("hub")
def test_stop_ends_the_other_files_too() -> None:
    moving = transfer.Transfer(repository.look(NAME, None), [])
    moving.stop.set()
    with pytest.raises(transfer._StoppedError):
        moving.add(1)


def test_server_without_ranges_begins_anew(hub: Hub) -> None:
    hub.faults[:] = ["cut", *["down"] * 20]
    with pytest.raises(FetchError):
        snapshot(NAME, None, every)
    hub.faults[:] = ["whole"]
    assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE


def test_damaged_file_is_no_file(hub: Hub, tmp_path: Path) -> None:
    hub.faults[:] = ["damage"]
    with pytest.raises(FetchError, match=rf"{WEIGHTS} of {NAME} came damaged: its hash is not the one"):
        snapshot(NAME, None, every)
    assert kept(tmp_path) == []
    assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE


@pytest.mark.usefixtures("hub")
def test_what_was_kept_damaged_is_fetched_anew(caplog: pytest.LogCaptureFixture) -> None:
    listing = repository.look(NAME, None)
    beginning = transfer.partial_of(listing, listing.files[WEIGHTS])
    for wrong in (b"x" * 1000, LARGE + b"more", b"x" * len(LARGE)):
        shutil.rmtree(transfer.cache(), ignore_errors=True)
        beginning.parent.mkdir(parents=True)
        beginning.write_bytes(wrong)
        assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE
    assert "was kept damaged, and is fetched anew" in caplog.text


def test_two_who_fetch_the_same_do_not_disturb_each_other(hub: Hub) -> None:
    threads = [Thread(target=snapshot, args=(NAME, None, every)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE
    assert len(hub.contents()) == 1


def test_hub_that_is_asked_too_often_is_asked_again_later(hub: Hub) -> None:
    hub.busy, hub.faults[:] = 2, ["busy"]
    assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE


def test_hub_that_stays_too_busy_is_named_as_that(hub: Hub) -> None:
    hub.busy = 1000
    with pytest.raises(FetchError, match=r"could not be fetched \(.*429.*run this again"):
        snapshot(NAME, None, every)


@pytest.mark.usefixtures("hub")
def test_server_that_answers_no_more_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"could not be fetched \(.*, at http://127.0.0.1:9\)"):
        snapshot(NAME, None, every)


# --- offline ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_offline_what_was_fetched_is_found(
    hub: Hub, offline: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Also of a repository of which not all was wanted: what the client calls incomplete is complete for us."""

    def choose(names: list[str]) -> list[str]:
        return [name for name in names if name != "README.md"]

    before = snapshot(NAME, None, choose)
    offline()
    asked = len(hub.asked)
    with caplog.at_level(logging.INFO, "lssgen"):
        assert snapshot(NAME, None, choose) == before
    assert len(hub.asked) == asked
    assert f"{NAME} is taken as it was fetched before" in caplog.text


@pytest.mark.usefixtures("hub")
def test_offline_what_is_missing_is_named(offline: Callable[[], None]) -> None:
    snapshot(NAME, None, lambda _: ["model_index.json"])
    offline()
    with pytest.raises(FetchError, match=rf"of {NAME} {WEIGHTS} was not fetched before.*HF_HUB_OFFLINE"):
        snapshot(NAME, None, lambda _: [WEIGHTS])


@pytest.mark.usefixtures("hub")
def test_offline_what_was_never_fetched_is_not_there(offline: Callable[[], None]) -> None:
    offline()
    with pytest.raises(FetchError, match=r"could not be fetched .*HF_HUB_OFFLINE"):
        snapshot(NAME, None, every)


# --- revisions --------------------------------------------------------------------------------------------------------


def test_branch_is_pinned_to_its_commit(hub: Hub) -> None:
    hub.repos[NAME].branches = ("main", "fp16")
    assert snapshot(NAME, "fp16", every).name == hub.repos[NAME].commit
    assert all("fp16" not in one.path for one in hub.asked if one.method == "GET" and "resolve" in one.path)


@pytest.mark.usefixtures("hub")
def test_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModelError, match=rf"{NAME} has no such revision; its branches and commits"):
        snapshot(NAME, "v9", every)


@pytest.mark.usefixtures("hub")
def test_repository_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModelError, match=r"the hub has no somebody/else, or does not show it"):
        snapshot("somebody/else", None, every)


@pytest.mark.usefixtures("hub")
def test_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModelError, match=rf"{NAME} has no x\.safetensors; its files are listed"):
        HubFile(NAME, "x.safetensors").fetched()
    assert HubFile(NAME, WEIGHTS).fetched().read_bytes() == LARGE


# --- terms ------------------------------------------------------------------------------------------------------------


def test_licence_size_and_what_is_here_are_said_before_anything_is_fetched(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repos[NAME].card = {"license": "other", "license_name": "own-1.0", "license_link": "LICENSE.md"}
    hub.repos[NAME].gated, hub.repos[NAME].token = "auto", "let-me-in"
    with caplog.at_level(logging.INFO, "lssgen"), pytest.raises(FetchError):
        snapshot(NAME, None, every)
    assert [record.getMessage() for record in caplog.records][:2] == [
        f"{NAME}: licence own-1.0 (LICENSE.md) by its model card; gated: access is given to whoever accepts the terms "
        f"at https://huggingface.co/{NAME}",
        f"{NAME} at c0ffee000000: 3 files, 307 kB",
    ]
    assert hub.contents() == []


@pytest.mark.parametrize(
    ("gated", "token", "words"),
    [
        ("auto", "", r"wants its licence \(apache-2.0\) accepted first: open .*accept it there, then sign in with"),
        ("manual", "", r"ask for access there, which its authors give, then sign in"),
        ("auto", "hf_somebody", r"accept it there, signed in as the owner of the token that is used here"),
    ],
)
def test_gate_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch, gated: str, token: str, words: str) -> None:
    hub.repos[NAME].gated, hub.repos[NAME].token = gated, "let-me-in"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FetchError, match=words) as caught:
        snapshot(NAME, None, every)
    assert "hf_somebody" not in str(caught.value)


def test_whoever_is_let_in_gets_the_files_and_the_token_stays_with_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repos[NAME].gated, hub.repos[NAME].token = "auto", "hf_letmein"
    monkeypatch.setenv("HF_TOKEN", "hf_letmein")
    with caplog.at_level(logging.DEBUG):
        assert (snapshot(NAME, None, every) / WEIGHTS).read_bytes() == LARGE
    assert {one.token for one in hub.contents()} == {""}
    assert any(one.token == "hf_letmein" for one in hub.asked)
    assert "hf_letmein" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no luck at https://me:secret@mirror/a", "no luck at https://***@mirror/a"),
        ("GET http://cdn/blobs/1?signature=s3cret failed", "GET http://cdn/blobs/1?*** failed"),
        ("token hf_abcdefgh is wrong", "token *** is wrong"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_secrets_are_left_out_of_messages(said: str, shown: str) -> None:
    assert without_secrets(said) == shown


@pytest.mark.parametrize(
    ("card", "terms"),
    [
        ({"license": "apache-2.0"}, Terms(licence="apache-2.0")),
        ({"license": "other", "license_name": "x"}, Terms(licence="x")),
        ({"license": "other"}, Terms(licence="other")),
        ({"license": ["mit", "cc0-1.0"]}, Terms(licence="mit, cc0-1.0")),
        ({"license": "mit", "license_link": "LICENSE"}, Terms(licence="mit", link="LICENSE")),
        ({"license": {"odd": 1}}, Terms()),
        ({"license": "two\nlines"}, Terms(licence="two lines")),
        ({}, Terms()),
    ],
)
def test_terms_are_read_from_a_card(card: dict[str, object], terms: Terms) -> None:
    assert Terms.of(card, False) == terms


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        ("# A model", "unknown"),
        ("---\nlicense: [unclosed\n---\n", "unknown"),
        ("---\n- a list\n---\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_terms_are_read_from_a_folder(tmp_path: Path, card: str | None, licence: str) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert terms_of_folder(tmp_path).licence == licence


def test_terms_of_a_request_to_the_authors_say_so() -> None:
    assert terms_said("a/b", Terms(gated="manual")).endswith(
        "its authors give access on request, at https://huggingface.co/a/b"
    )


# --- room, progress, mirrors ------------------------------------------------------------------------------------------


def test_full_disk_is_found_out_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(FetchError, match=rf"{NAME} needs 307 kB in .*cache, where 1 kB are free; .*HF_HUB_CACHE"):
        snapshot(NAME, None, every)
    assert hub.contents() == []


@pytest.mark.usefixtures("hub")
def test_progress_is_told_in_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(transfer.Follower, "at", lambda _, share, where: told.append((share, where)))
    snapshot(NAME, None, every)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert f"fetching {NAME}: 65.5 kB of 307 kB, 0 of 1 files whole" in [where for _, where in told]


def test_progress_counts_what_a_server_without_ranges_gives_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults[:] = ["cut", *["down"] * 20]
    with pytest.raises(FetchError):
        snapshot(NAME, None, every)
    told: list[float] = []
    monkeypatch.setattr(transfer.Follower, "at", lambda _, share, __: told.append(share))
    hub.faults[:] = ["whole"]
    snapshot(NAME, None, every)
    assert told[-1] == 1


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (23_800_000_000, "23.8 GB")]
)
def test_bytes_are_said_in_units(count: int, words: str) -> None:
    assert transfer.in_bytes(count) == words


def test_address_at_a_mirror_is_one_at_the_hub(hub: Hub) -> None:
    for address in (
        f"{hub.url}/a/b/resolve/main/c.safetensors",
        f"{hub.url.replace('://', ':/')}/a/b/blob/main/c.safetensors",
    ):
        assert hub_file(address) == HubFile("a/b", "c.safetensors", "main")


def test_environment_names_the_mirror_and_the_cache(hub: Hub, tmp_path: Path) -> None:
    """In a process of its own: the client reads the two when it is imported."""
    code = f"from lssgen.export.remote import snapshot; print(snapshot({NAME!r}, None, list))"
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "own"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own").resolve() in Path(done.stdout.strip()).parents


# --- a whole checkpoint -----------------------------------------------------------------------------------------------


def test_checkpoint_is_fetched_without_what_no_export_reads(sd3: Path, hub: Hub) -> None:
    own = {path.relative_to(sd3).as_posix(): path.read_bytes() for path in sd3.rglob("*.*")}
    junk = ["transformer/diffusion_pytorch_model.bin", "transformer/diffusion_pytorch_model.fp16.safetensors",
            "vae/flax_model.msgpack", "text_encoder/model.onnx", "preview.png", "sd3.safetensors",
            "safety_checker/model.safetensors"]  # fmt: skip
    hub.repos["somebody/sd3"] = Repo({**own, **dict.fromkeys(junk, b"x" * 5000)}, card={"license": "mit"})
    hub.repos["somebody/sd3"].files["README.md"] = b"---\nlicense: mit\n---\n"
    model = find_model("somebody/sd3", without=("text_encoder_3", "tokenizer_3"))
    folder = model.checkpoint.folder
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert here.isdisjoint(junk)
    assert not any(name.startswith(("text_encoder_3", "tokenizer_3")) for name in here)
    assert WEIGHTS in here
    assert (model.revision, model.licence) == (hub.repos["somebody/sd3"].commit, "mit")


def test_checkpoint_of_a_hub_that_says_nothing_has_an_unknown_licence(sd3: Path, hub: Hub) -> None:
    own = {path.relative_to(sd3).as_posix(): path.read_bytes() for path in sd3.rglob("*.*")}
    hub.repos["somebody/sd3"] = Repo(own)
    assert find_model("somebody/sd3").licence == "unknown"


def test_pictures_pickles_and_code_are_in_no_list() -> None:
    names = ["model_index.json", "pipeline.py", "unet/model.py", "unet/diffusion_pytorch_model.safetensors",
             "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/example.png",
             "unet/config.json", "unet/openvino_model.xml", "unet/model.onnx", "unet/model.onnx_data"]  # fmt: skip
    assert set(needed_files([*names, "README.md"], ["unet"])) == {
        "README.md",  # which says under which licence it is
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
