"""A bundle's folder: what is read, and what is refused."""

import codecs
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle, verify
from lssgen.errors import BundleError
from lssgen.manifest import FORMAT


@pytest.fixture
def folder(toy: Path, tmp_path: Path) -> Path:
    return copytree(toy, tmp_path / "toy")


def changed(folder: Path, **fields: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(manifest | fields))


def test_a_manifest_that_is_written_again_is_the_same(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert manifest_json(bundle.manifest) == (folder / MANIFEST).read_bytes()


def test_an_older_bundle_is_to_be_exported_again_and_says_who_wrote_it(folder: Path) -> None:
    changed(folder, format=1, lssgen="0.0.9")
    with pytest.raises(
        BundleError,
        match=r"has format 1, written by lssgen 0\.0\.9; .* reads format 2: export the model again",
    ):
        read_bundle(folder)


def test_a_newer_bundle_needs_a_newer_lssgen(folder: Path) -> None:
    changed(folder, format=FORMAT + 1, lssgen="9.9", graphs="something else")
    with pytest.raises(BundleError, match=r"has format 3, written by lssgen 9\.9; .*: upgrade lssgen to read it"):
        read_bundle(folder)


def test_a_manifest_without_a_format_is_not_one(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(BundleError, match="has format None, written by lssgen unknown"):
        read_bundle(folder)


@pytest.mark.parametrize("feed", [{"type": "oracle"}, {"type": "state"}, {"type": "sizes", "values": ["depth_px"]}, 7])
def test_a_feed_that_this_lssgen_does_not_know_is_damage(folder: Path, feed: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["graphs"]["step"]["feeds"]["noise"] = feed
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="is damaged: "):
        read_bundle(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "decode.onnx").unlink()
    with pytest.raises(BundleError, match=r"is incomplete: decode\.onnx is missing"):
        read_bundle(folder)


def test_a_changed_file_is_found_by_its_hash(folder: Path) -> None:
    bundle = read_bundle(folder)
    verify(bundle)
    (folder / "step.onnx").write_bytes((folder / "step.onnx").read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"step\.onnx has changed since the export"):
        verify(bundle)


def test_a_graphs_size_is_that_of_its_files(folder: Path) -> None:
    bundle: Bundle = read_bundle(folder)
    assert bundle.stored_bytes("step") == (folder / "step.onnx").stat().st_size


def edited(folder: Path, edit: Callable[[Any], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


IMPOSSIBLE: Mapping[str, tuple[Callable[[Any], object], str]] = {
    "no graphs": (lambda m: m["graphs"].clear(), "it names no graph 'step'"),
    "no step": (lambda m: m["graphs"].pop("step"), "it names no graph 'step'"),
    "no channels": (lambda m: m["facts"].update(channels=0), "channels is 0"),
    "a negative cell": (lambda m: m["facts"].update(cell_px=-8), "cell_px is -8"),
    "a huge patch": (lambda m: m["facts"].update(patch=10**9), "patch is 1000000000"),
    "a resolution of nothing": (lambda m: m.update(resolutions=[[64, 0]]), "width of resolution 0 x 64 is 0"),
    "no history": (lambda m: m.update(history=0), "history is 0, which is not in 1 to 64"),
    "no tokens": (lambda m: m["tokenizers"][0].update(length=0), "length of tokenizer 'tokenizer.json' is 0"),
    "a billion tokens": (lambda m: m["tokenizers"][0].update(length=10**9), "length of .* is 1000000000"),
    "filling that divides by zero": (lambda m: m["tokenizers"][0].update(pad_multiple=0), "pad_multiple of .* is 0"),
    "a token below zero": (lambda m: m["tokenizers"][0].update(pad_id=-1), "pad_id of .* is -1"),
    "a token axis below zero": (lambda m: m.update(token_axes={"tokens": -8}), "token_axes tokens is -8"),
    "an absolute file": (lambda m: m["graphs"]["step"].update(file="/etc/passwd"), "not a name within the bundle"),
    "a file above": (lambda m: m["graphs"]["step"].update(data=["../x.data"]), "not a name within the bundle"),
    "a file above, on Windows": (lambda m: m["graphs"]["step"].update(data=["..\\x"]), "not a name within the bundle"),
    "a file on a drive": (lambda m: m["tokenizers"][0].update(file="c:x.json"), "not a name within the bundle"),
    "a name too long": (lambda m: m["tokenizers"][0].update(file="x" * 999), "not a name within the bundle"),
    "a name with a null": (lambda m: m["tokenizers"][0].update(file="x\0"), "not a name within the bundle"),
    "an unknown type": (lambda m: m["graphs"]["step"]["inputs"][0].update(dtype="float5"), "has the type 'float5'"),
    "an axis of nothing": (lambda m: m["graphs"]["step"]["inputs"][0].update(shape=[0]), "is 0, which is not in 1 to"),
    "an axis without meaning": (lambda m: m["graphs"]["step"]["axes"].pop("width"), "what axis 'width' of latent"),
    "an input without a source": (lambda m: m["graphs"]["step"]["feeds"].pop("row"), "what row is fed with"),
    "a state without its output": (
        lambda m: m["graphs"]["step"]["feeds"]["latent"].update(output="x"),
        "latent is fed with 'x', which is not an output of the step",
    ),
    "text that nobody says": (
        lambda m: m["graphs"]["step"]["feeds"]["text"].update(output="x"),
        "text is fed with 'x', which is not an output of the text graph",
    ),
    "no latent": (
        lambda m: m["graphs"]["step"]["feeds"]["latent"].update(start="zeros"),
        "has 0 states that start as the latent",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_manifest_that_cannot_be_true_is_damage(folder: Path, name: str) -> None:
    edit, words = IMPOSSIBLE[name]
    edited(folder, edit)
    with pytest.raises(BundleError, match=f"is damaged: .*{words}"):
        read_bundle(folder)


def test_a_link_out_of_the_bundle_is_refused_and_one_within_is_not(folder: Path, tmp_path: Path) -> None:
    step = folder / "step.onnx"
    step.rename(folder / "real.onnx")
    step.symlink_to("real.onnx")
    verify(read_bundle(folder))
    (folder / "real.onnx").rename(tmp_path / "real.onnx")
    step.unlink()
    step.symlink_to(tmp_path / "real.onnx")
    with pytest.raises(BundleError, match=r"step\.onnx is a link to .*real\.onnx, outside of the bundle"):
        read_bundle(folder)


def test_a_bundle_behind_a_link_is_a_bundle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    verify(read_bundle(tmp_path / "link"))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe{\0}\0", b"[" * 5000, b'{"a":' * 5000, b'{"format": 2}'])
def test_what_is_not_a_manifest_is_damage(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=r"is damaged: it is not what it should be"):
        read_bundle(folder)


def test_a_byte_order_mark_is_no_damage(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(codecs.BOM_UTF8 + (folder / MANIFEST).read_bytes())
    read_bundle(folder)


def test_what_is_not_a_file_is_not_read(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)  # nobody writes into it: who waits for that waits for ever
    with pytest.raises(BundleError, match=r"cannot be read \(it is a pipe and not a file\)"):
        read_bundle(folder)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="it is a device and not a file"):
        read_bundle(folder)


def test_a_changed_manifest_is_found_by_its_seal(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(text.replace(b'"num_inference_steps": 6', b'"num_inference_steps": 7'))
    with pytest.raises(BundleError, match=r"manifest\.json has changed since the export; .* remove its seal"):
        verify(read_bundle(folder))


def test_a_manifest_written_by_hand_needs_no_seal(folder: Path) -> None:
    edited(folder, lambda manifest: (manifest.pop("seal"), manifest["facts"].update(name="mine")))
    verify(read_bundle(folder))
