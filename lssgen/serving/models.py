"""The models of a server by name and alias, and which of them are loaded: as many as there is memory for."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from threading import Lock

from lssgen import paths
from lssgen.bundle import read_bundle
from lssgen.engines.base import Backend
from lssgen.errors import BundleError, ModelError, RefusedError
from lssgen.lora.asked import Lora, RunLora
from lssgen.lora.placed import see_library
from lssgen.lora.said import places_of
from lssgen.lora.styled import styled
from lssgen.paths import find_bundle
from lssgen.runtime.pipeline import KEEP_BYTES
from lssgen.serving.model import Model
from lssgen.serving.status import ModelInfo
from lssgen.serving.times import place_of, remember, remembered
from lssgen.verification import Verify, see_whole

_LOG = logging.getLogger("lssgen")

STYLE = "@"
"""Sign between a model's name and that of a LoRA: "sd3@style"."""

_LONGEST = 100
"""Bytes of a LoRA's name: with its model's, and the ending of a file, it is one that every file system takes."""


@dataclass(frozen=True, slots=True)
class Style:
    """What a request's name of a model stands for.

    Attributes:
        name: Name without aliases, "sd3@style".
        model: Model that paints it.
        loras: LoRAs in the model's slots, as `Options` takes them; empty: the model by itself.
    """

    name: str
    model: Model
    loras: tuple[str, ...] = ()


class Models:
    """Bundles that a server paints with.

    Args:
        bundles: Folders by name; at least one, the default first.
        aliases: Further names.
        loras: LoRAs by the name that follows the model's: "style" of "sd3@style".
        backend: Where they run.
        verify: When to compare files with their hashes.

    Raises:
        BundleError: No bundle there, or a damaged one; or an alias that leads nowhere or stands for two.
        ModelError: A LoRA is not there, has no name that can be asked for, or cannot be merged here.
    """

    def __init__(
        self,
        bundles: Mapping[str, Path],
        aliases: Mapping[str, str],
        loras: Mapping[str, Lora],
        backend: Backend,
        verify: Verify,
    ) -> None:
        self._backend = backend
        self._verify: Verify = verify
        self._loras = dict(loras)
        for name, lora in loras.items():
            if not _is_plain(name):
                raise ModelError(f"{name!r} cannot name a LoRA; choose letters, digits, dashes and dots")
            places_of(lora.path)
        self._lock = Lock()
        self._models: dict[str, Model] = {}
        for name, folder in bundles.items():
            self._models[name] = self._opened(name, folder)
        if loras and not all(model.loras.ranks for model in self):
            see_library()
        self._styles: dict[str, Style] = {}
        self._aliases = dict(aliases)
        for alias, name in aliases.items():
            if alias in self._models or name not in self._models:
                raise BundleError(
                    f"alias {alias!r} for {name!r} leads nowhere: this server has {', '.join(self._models)}"
                    if name not in self._models
                    else f"{alias!r} is the name of a bundle, and cannot stand for {name!r} too"
                )

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    @property
    def first(self) -> Model:
        """The model of requests that name none."""
        return next(iter(self))

    @property
    def loaded_bytes(self) -> int:
        """Memory of the weights that are loaded."""
        return sum(model.bytes for model in self if model.loaded)

    def find(self, name: str) -> "Style":
        """The model of a name or alias; "sd3@style" is the model with the LoRA in its slots, or another one, opened or
        made of the LoRA when it is first asked for.

        Raises:
            RefusedError: There is none, or it cannot be had.
        """
        if not name:
            return Style(self.first.name, self.first)
        base, sign, style = self._aliases.get(name, name).partition(STYLE)
        base = self._aliases.get(base, base)
        name = f"{base}{sign}{style}"
        known = name in self._models or name in self._styles
        if not known and base in self._models and _is_plain(style):
            try:
                with self._lock:  # whoever asks for the same meanwhile waits, and finds it
                    self._open_style(name, base, style)
            except (BundleError, ModelError) as error:
                raise RefusedError(f"{name}: {error}", code="broken_model", param="model") from error
        if name in self._styles:
            return self._styles[name]
        if name not in self._models:
            known = [*self._models, *self._aliases]
            near = get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise RefusedError(f"there is no model {name[:80]!r} here; {advice}", code="unknown_model", param="model")
        return Style(name, self._models[name])

    def described(self, name: str) -> ModelInfo:
        """What the server says of the model of a name or alias.

        Raises:
            RefusedError: There is none, or it cannot be had.
        """
        found = self.find(name)
        return replace(self.info(found.model), name=found.name, aliases=()) if found.loras else self.info(found.model)

    def infos(self) -> tuple[ModelInfo, ...]:
        """What the server says of them."""
        return (*map(self.info, self), *self._to_be_made())

    def _to_be_made(self) -> Iterator[ModelInfo]:
        """LoRAs that the owner named, with every bundle that has slots or that nobody has asked for them yet."""
        for model in self:
            for style in self._loras if STYLE not in model.name else ():
                if (name := f"{model.name}{STYLE}{style}") not in self._models:
                    info = replace(model.info(()), name=name)
                    yield info if name in self._styles else replace(info, folder="", loaded=False)

    def info(self, model: Model) -> ModelInfo:
        """What the server says of one."""
        return model.info([alias for alias, name in self._aliases.items() if name == model.name])

    def make_room(self, model: Model, budget: int, in_use: Callable[[str], bool]) -> bool:
        """Unload models that nobody uses, least recently used first, until another one fits; whether it does.

        Args:
            model: Which is to be loaded.
            budget: Bytes that weights and buffers may take.
            in_use: Whether pictures of a model are on the device.
        """
        idle = sorted((one for one in self if one.loaded and not in_use(one.name)), key=lambda one: one.used)
        while self.loaded_bytes + model.bytes > budget and idle:
            idle.pop(0).close()
        return self.loaded_bytes + model.bytes <= budget or not any(one.loaded for one in self)

    def remember(self) -> None:
        """Keep what was measured for the next server."""
        for model in self:
            if len(model.times):
                remember(place_of(model.bundle, self._backend.describe()), model.times)

    def close(self) -> None:
        """Free everything."""
        for model in self:
            model.close()

    def _open_style(self, name: str, base: str, style: str) -> None:
        """A bundle of that name, or else the model with a LoRA of that name; nothing where there is neither."""
        if name in self._models or name in self._styles:
            return
        file = paths.loras() / f"{style}.safetensors"
        lora = self._loras.get(style) or (Lora(file) if file.is_file() else None)
        folder = paths.bundles() / name
        if not folder.is_dir():
            if lora is None:
                return
            if self._in_slots(name, base, lora):
                return
            folder = styled(self._models[base].bundle, lora, paths.styles()).folder
        model = self._opened(name, folder)
        if not len(model.times):
            model.times.learn(self._models[base].times)  # the same arithmetic with other numbers
        self._models[name] = model

    def _in_slots(self, name: str, base: str, lora: Lora) -> bool:
        """Let a LoRA be painted with in the slots of a model, if it fits them: it then has no weights of its own."""
        model, asked = self._models[base], (str(RunLora(lora.path, (lora.scale,))),)
        if not model.loras.ranks:
            return False
        try:
            model.loras.read(asked, stages=1)
        except ModelError as error:
            _LOG.warning("%s goes into a bundle of its own, with weights of its own: %s", name, error)
            return False
        self._styles[name] = Style(name, model, asked)
        return True

    def _opened(self, name: str, folder: Path) -> Model:
        bundle = read_bundle(find_bundle(folder))
        if "text" not in bundle.manifest.graphs:
            raise BundleError(
                f"bundle {bundle.folder} was exported without its text encoder, and requests bring words: serve one "
                "that has it, or paint from embeddings with lssgen run --prompt-embeds"
            )
        see_whole(bundle, self._verify)
        model = Model(name, bundle, self._backend, keep_bytes=KEEP_BYTES)
        model.times = remembered(place_of(bundle, self._backend.describe()), bundle.manifest.facts.cost)
        return model


def _is_plain(name: str) -> bool:
    """Whether a name can be that of a file in a folder."""
    short = 0 < len(name.encode(errors="replace")) <= _LONGEST
    return short and Path(name).name == name and not name.startswith(".") and STYLE not in name


def named(bundles: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Bundles by name: those that are given, or those of their folders.

    Raises:
        BundleError: There is none, or two have one name.
    """
    if isinstance(bundles, Mapping):
        found = [(name, Path(folder)) for name, folder in bundles.items()]
    else:
        folders = [bundles] if isinstance(bundles, str | Path) else bundles
        found = [(find_bundle(folder).resolve().name, Path(folder)) for folder in folders]
    names = [name for name, _ in found]
    if not names:
        raise BundleError("no bundle was given to serve; give the folder of at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BundleError(f"two bundles are called {twice[0]!r}; give them names: {{'one': FOLDER, 'other': FOLDER}}")
    return dict(found)
