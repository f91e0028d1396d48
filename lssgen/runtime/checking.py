"""Hooks that see every picture before anybody else does: safety checkers, detectors, and what embeds a watermark.

A checker is a function of pictures and their prompts that says of each picture what becomes of it. A watermark is a
function of pictures that gives pictures. Both get all pictures of a batch at once: finished ones, and those that are
shown on the way (previews of stages, estimates, drafts). Checkers look first, at what the model painted; the watermark
is embedded in what is left.

A hook that raises, or answers something else, lets no picture out.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Literal, Protocol, cast, get_args

from PIL import Image

from lssgen.errors import CheckError, RefusedPictureError

Action = Literal["keep", "replace", "refuse"]
"""Fate of a picture: it is let out; another one takes its place, black where none is given; or the run, or the
request to a server, ends with an error and gives nothing more."""

GROUPS = {"checker": "lssgen.checkers", "watermark": "lssgen.watermarks"}
"""Groups of entry points in which packages name their hooks."""

_LOG = logging.getLogger("lssgen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a checker says of a picture.

    Attributes:
        action: Fate of the picture.
        reason: Sentence for the record, and for whoever asked for the picture.
        image: Picture that takes its place, RGB, of the same size; None: a black one. Only with "replace".

    Raises:
        CheckError: It contradicts itself.
    """

    action: Action = "keep"
    reason: str = ""
    image: Image.Image | None = None

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise CheckError(f"a verdict's action is {self.action!r}; it must be one of {', '.join(get_args(Action))}")
        if self.image is not None and self.action != "replace":
            raise CheckError(f"a verdict has a picture, and its action is {self.action}; only 'replace' takes one")


class Checker(Protocol):
    """Looks at the pictures of a batch; called from one thread at a time."""

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str], /) -> Sequence[Verdict]:
        """Say what becomes of each picture.

        Args:
            pictures: RGB, of any sizes.
            prompts: The prompt of each.

        Returns:
            A verdict for each, in their order.
        """
        ...


class Watermark(Protocol):
    """Changes the pictures of a batch; called from one thread at a time."""

    def __call__(self, pictures: Sequence[Image.Image], /) -> Sequence[Image.Image]:
        """RGB pictures to as many RGB pictures of the same sizes, in their order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a hook did with a picture, for the record.

    Attributes:
        by: Name of the hook.
        action: Verdict, or "watermark".
        reason: Reason that the checker gives.
    """

    by: str
    action: Literal["keep", "replace", "refuse", "watermark"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """A picture that may be let out.

    Attributes:
        image: The picture.
        checked: Actions of the hooks, in their order.
    """

    image: Image.Image
    checked: tuple[Checked, ...] = ()

    @property
    def replaced(self) -> bool:
        """Whether it is not what the model painted, and nobody may have that."""
        return any(one.action == "replace" for one in self.checked)


class Guard:
    """Lets pictures out, past the hooks.

    Args:
        checker: Looks at them, or several that do so one after another; or their names, "package.module:function" or an
            entry point of the group `lssgen.checkers`, each of a function without arguments that makes one. None: none.
        watermark: Changes them after that, or its name (group `lssgen.watermarks`); None: nothing does.

    Raises:
        CheckError: A name leads to nothing, or what is there is not a function.
    """

    def __init__(
        self, checker: Checker | str | Sequence[Checker | str] | None = None, watermark: Watermark | str | None = None
    ) -> None:
        several = [] if checker is None else [checker] if isinstance(checker, str) or callable(checker) else checker
        self._checkers = [cast(Checker, _hook(one, "checker")) for one in several]
        self._watermark = None if watermark is None else cast(Watermark, _hook(watermark, "watermark"))

    def __bool__(self) -> bool:
        """Whether there are hooks."""
        return bool(self._checkers) or self._watermark is not None

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Passed]:
        """Pictures of a batch as they may be let out.

        Raises:
            RefusedPictureError: A checker refuses one.
            CheckError: A hook failed.
        """
        passed = [Passed(picture) for picture in pictures]
        for checker in self._checkers:
            passed = _checked(checker, passed, prompts)
        return passed if self._watermark is None else _marked(self._watermark, passed)


def _hook(hook: object, kind: str) -> Callable[..., object]:
    """A hook, made where a name is given.

    Raises:
        CheckError: There is none of that name, or it is not a function.
    """
    made = _made(hook, kind) if isinstance(hook, str) else hook
    if not callable(made):
        raise CheckError(f"{kind} {hook!r} is not a function, but a {type(made).__name__}; see docs/checking.md")
    return made


def _made(name: str, kind: str) -> object:
    module, colon, function = name.partition(":")
    try:
        named = entry_points(group=GROUPS[kind])
        return (getattr(import_module(module), function) if colon else named[name].load())()
    except KeyError as error:
        known = ", ".join(sorted(entry_points(group=GROUPS[kind]).names)) or "none"
        raise CheckError(
            f"no installed package names a {kind} {name!r}; there are {known}: give package.module:function, whose "
            "function makes one"
        ) from error
    except Exception as error:  # whatever importing and making somebody else's hook raises
        raise CheckError(f"{kind} {name} cannot be made: {type(error).__name__}: {error}") from error


def _checked(checker: Checker, passed: Sequence[Passed], prompts: Sequence[str]) -> list[Passed]:
    name = name_of(checker)
    verdicts = _asked(name, lambda: checker([one.image for one in passed], list(prompts)), len(passed))
    if odd := next((verdict for verdict in verdicts if not isinstance(verdict, Verdict)), None):
        raise CheckError(f"checker {name} answered with a {type(odd).__name__}; it must give Verdicts")
    for verdict in cast("list[Verdict]", verdicts):
        if verdict.action == "refuse":
            raise RefusedPictureError(f"a picture was refused by {name}: {verdict.reason or 'it gives no reason'}")
    return [_after(name, one, verdict) for one, verdict in zip(passed, cast("list[Verdict]", verdicts), strict=True)]


def _after(name: str, one: Passed, verdict: Verdict) -> Passed:
    image = one.image
    if verdict.action == "replace":
        image = Image.new("RGB", image.size) if verdict.image is None else _fitting(name, verdict.image, image)
    said = Checked(by=name, action=verdict.action, reason=verdict.reason)
    return replace(one, image=image, checked=(*one.checked, said))


def _marked(watermark: Watermark, passed: Sequence[Passed]) -> list[Passed]:
    name = name_of(watermark)
    images = _asked(name, lambda: watermark([one.image for one in passed]), len(passed))
    said = Checked(by=name, action="watermark")
    return [
        replace(one, image=_fitting(name, image, one.image), checked=(*one.checked, said))
        for one, image in zip(passed, images, strict=True)
    ]


def _asked(name: str, ask: Callable[[], object], count: int) -> list[object]:
    """What a hook answers, if it answers for every picture.

    Raises:
        CheckError: It does not.
    """
    try:
        answered = list(cast("Sequence[object]", ask()))
    # SystemExit of a hook too: it is not a reason for a server's thread to end.
    except (Exception, SystemExit) as error:
        _LOG.exception("%s failed", name)
        raise CheckError(
            f"{name} failed ({type(error).__name__}: {error}); no picture is let out that it has not seen"
        ) from error
    if len(answered) != count:
        raise CheckError(f"{name} was given {count} pictures and answered for {len(answered)}; no picture is let out")
    return answered


def _fitting(name: str, image: object, before: Image.Image) -> Image.Image:
    """A picture of a hook, if it can stand in the place of another."""
    if not isinstance(image, Image.Image) or image.mode != "RGB" or image.size != before.size:
        came = f"{image.mode}, {image.size}" if isinstance(image, Image.Image) else type(image).__name__
        raise CheckError(f"{name} gave a picture ({came}) for one that is RGB, {before.size}; it must be of that kind")
    return image


def name_of(hook: object) -> str:
    """What a hook is called in records: its module and name, or those of its class."""
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{getattr(named, '__module__', '?')}:{getattr(named, '__qualname__', '?')}"
