"""Flags made from records: a field that is declared with `choice` gives its flag, type, choices, default and help."""

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from lssgen.choices import Flag, flags_of
from lssgen.commands.parser import Parser
from lssgen.commands.values import (
    Reader,
    integer,
    number,
    number_or,
    one_of,
    reads_itself,
    rows_first,
    several,
    size,
    within,
)

_READERS: Mapping[Any, tuple[Reader, str]] = {
    int: (integer, "N"),
    float: (number, "X"),
    str: (str, "TEXT"),
    Path: (Path, "PATH"),
    tuple[int, int]: (rows_first, "WxH"),
}
"""Reader of a type, and the word that stands for it in the help. Fields with two numbers count rows first."""


def add_flags(parser: Parser, record: type, *, into: str = "", leave: tuple[str, ...] = ()) -> None:
    """Add a flag for every choice that a record declares.

    A flag that is not given leaves nothing in the namespace, so that what was given can be told from a default.

    Args:
        parser: Where to.
        record: A dataclass.
        into: Beginning of the names in the namespace, where several records have fields of one name.
        leave: Fields without a flag here.
    """
    for name in flags_of(record):
        if name not in leave:
            add_flag(parser, record, name, into=into)


def add_flag(parser: Parser, record: type, name: str, *, into: str = "", group: str = "", note: str = "") -> None:
    """Add the flag of one field, in another group or with a note in its help where these are given."""
    field, flag = flags_of(record)[name]
    hint = _without_none(get_type_hints(record)[name])
    spelt = (flag.name or "--" + name.replace("_", "-"), *flag.aliases)
    said: dict[str, Any] = {"dest": into + name, "default": argparse.SUPPRESS}
    said["help"] = _help(field, flag, note, is_switch=hint is bool and field.default is False)
    place = parser.group(group or flag.group)
    if hint is bool and field.default is False:
        place.add_argument(*spelt, action="store_true", **said)
    elif hint is bool or _is_record(hint):
        place.add_argument(*spelt, action=argparse.BooleanOptionalAction, **said)
    else:
        read, metavar = _reader(hint, flag)
        # No choices=: argparse would print all of them into its one-line refusals; `one_of` names the nearest.
        said |= {"type": read, "metavar": flag.metavar or metavar, "required": _is_required(field, flag)}
        place.add_argument(*spelt, action="append" if flag.repeated else "store", **said)
    if _is_record(hint):
        add_flags(parser, hint, into=f"{into}{name}.")


def given(args: argparse.Namespace, record: type, *, into: str = "") -> dict[str, Any]:
    """What the flags of a record say, by field; what was not given is left out.

    A field that is itself a record is False where it is switched off, and otherwise there if any of its flags is given.

    Raises:
        LssgenError: A record within the record refuses its values.
    """
    found: dict[str, Any] = {}
    for name, (_, flag) in flags_of(record).items():
        hint, key = _without_none(get_type_hints(record)[name]), into + name
        value = getattr(args, key, None)
        if _is_record(hint):
            inner = given(args, hint, into=f"{key}.")
            # Any flag of a record asks for it; --no-... wins over all of them.
            if value is False or value or inner:
                found[name] = value is not False and hint(**inner)
        elif value is not None:
            found[name] = tuple(value) if flag.repeated else value
    return found


def default_of(field: Field[Any]) -> Any:
    """A field's default; MISSING where it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _help(field: Field[Any], flag: Flag, note: str, *, is_switch: bool) -> str:
    parts = [flag.help, note]
    if _is_required(field, flag):
        parts.append("required")
    elif not is_switch:
        parts.append(f"default: {flag.unset or spelt(default_of(field))}")
    # argparse takes % for the beginning of a format.
    return "; ".join(filter(None, parts)).replace("%", "%%")


def spelt(value: Any) -> str:
    """A value as one would write it on the command line."""
    match value:
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case (int(height), int(width)):
            return f"{width}x{height}"
        case tuple():
            return ",".join(map(spelt, cast(tuple[Any, ...], value)))
        case _:
            return str(value)


def _is_required(field: Field[Any], flag: Flag) -> bool:
    return default_of(field) is MISSING and not flag.unset


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__dataclass_fields__") and bool(flags_of(hint))


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(hint) and len(kinds) == 1 else hint


def _reader(hint: Any, flag: Flag) -> tuple[Reader, str]:
    """What reads a value of a type, and what stands for it in the help."""
    read, metavar = _plain_reader(hint, flag)
    return (read if flag.least is flag.most is None else within(flag.least, flag.most, read)), metavar


def _plain_reader(hint: Any, flag: Flag) -> tuple[Reader, str]:
    if flag.words:
        return number_or(flag.words), "X"
    if hint in _READERS:
        return _READERS[hint]
    if get_origin(hint) is Literal:
        return one_of(get_args(hint)), "{" + ",".join(get_args(hint)) + "}"
    if get_origin(hint) is tuple:
        read, metavar = _plain_reader(get_args(hint)[0], flag)
        return (read, metavar) if flag.repeated else (several(read), f"{metavar},...")
    return reads_itself(hint), hint.__name__.upper()


def add_pair(parser: Parser, flag: str, said: str, *, group: str, unset: str) -> None:
    """Add a flag that gives two sides, width x height, at once."""
    text = f"{said}: 1024, or 1280x768; default: {unset}"
    parser.group(group).add_argument(flag, dest=flag, type=size, default=argparse.SUPPRESS, metavar="WxH", help=text)


def pair(args: argparse.Namespace, flag: str, width: str, height: str) -> dict[str, int]:
    """What a flag of `add_pair` says, by the names of two fields; nothing if it was not given."""
    sides: tuple[int, int] | None = getattr(args, flag, None)
    return {} if sides is None else {width: sides[0], height: sides[1]}
