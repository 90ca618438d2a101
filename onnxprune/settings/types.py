"""The types of settings: whether values have them, and what they are called in messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

Share = Annotated[float, "share"]
"""A fraction, such as 0.5. The command line also takes 50%."""

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    NoneType: "None",
    dict: "a dictionary",
}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type; NaN isn't a number here."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return fits(value, args[0])
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = args[:1] * len(value) if args[-1] is ... else args
        return len(parts) == len(value) and all(map(fits, value, parts))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and value == value
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, kind)


def misfit(value: Any, kind: Any) -> tuple[Any, Any]:
    """Return a value that doesn't fit with its type, or the part that doesn't, where there may be several."""
    for several in (kind, *get_args(kind)):
        if isinstance(value, tuple) and get_origin(several) is tuple and get_args(several)[-1] is ...:
            part = get_args(several)[0]
            return next(((each, part) for each in value if not fits(each, part)), (value, kind))
    return value, kind


def meant_percent(number: float) -> list[str]:
    """Return a hint for a number that was given as a share, if it makes sense as one in per cent."""
    return [f"did you mean {number:g}%?"] if number == 1 or 2 <= number <= 100 else []  # 1.2 was 120%


def share_hint(number: float, allowed: Callable[[float], bool]) -> str:
    """Return a hint for a share that is out of range: a number in per cent, if that would be allowed."""
    asked = meant_percent(number) if allowed(number / 100) else []
    return asked[0] if asked else "write a share such as 5% or 0.05"


def has_share(kind: Any) -> bool:
    """Whether a value of a type may be a share."""
    return kind == Share or (get_origin(kind) is not Annotated and any(map(has_share, get_args(kind))))


def literals(kind: Any) -> Iterator[Any]:
    """Yield the values of all literals in a type."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for arg in get_args(kind):
            yield from literals(arg)


def meaning(kind: Any) -> str:
    """Return a type in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return "a share such as 0.5" if args[1] == "share" else meaning(args[0])
    if origin in (Union, UnionType):
        return " or ".join(meaning(arg) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else repr(args[0])
    if origin is tuple:
        inner = [meaning(arg) for arg in args if arg is not ...]
        return f"a tuple of ({', '.join(inner)}{', ...' if args[-1] is ... else ''})"
    if origin is not None:
        return f"a mapping from {meaning(args[0])} to {meaning(args[1])}"
    return _WORDS.get(kind, f"a {kind.__name__}")


def numbers(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the numbers in a value, each with the keys or words that go with it."""
    if isinstance(value, Real) and not isinstance(value, bool):
        yield (), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (((str(key), *words), number) for words, number in numbers(inner))
    elif isinstance(value, tuple):
        words = tuple(part for part in value if isinstance(part, str))
        for inner in value:
            yield from (((*words, *more), number) for more, number in numbers(inner))


def several(value: Any) -> tuple[Any, ...]:
    """Return a value as a tuple, of one if it isn't any."""
    return value if isinstance(value, tuple) else (value,)
