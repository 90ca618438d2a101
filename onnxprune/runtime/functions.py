"""Python functions of the user's, named module:function: data, metrics, criteria, transformations, training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from onnxprune.errors import DataError, OnnxPruneError
from onnxprune.errors.words import one_line


def is_function_name(text: str) -> bool:
    """Whether a text has the form module:function."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", text) is not None


def find_function(name: str) -> Callable[..., Any]:
    """Import module:function. A collection found under that name is wrapped in a function that returns it.

    Raises:
        DataError: it can't be imported, or is neither a function nor a collection (OP710).
    """
    module, _, path = name.partition(":")
    with guarded(name, "importing it"):
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    if callable(found):
        return found  # type: ignore[no-any-return]
    if hasattr(found, "__iter__") and not hasattr(found, "__next__"):
        return lambda: found
    raise DataError("OP710", f"neither a function nor a collection but a {type(found).__name__}", where=name)


@contextmanager
def guarded(name: str, what: str) -> Iterator[None]:
    """Convert exceptions of a user's code to errors that name it.

    Raises:
        DataError: the code raised something other than an OnnxPruneError (OP710).
    """
    try:
        yield
    except OnnxPruneError:
        raise
    except Exception as error:
        cause = f"{what} failed with {type(error).__name__}: {one_line(error)}"
        raise DataError("OP710", cause, where=name, hint="see the traceback (-vv prints it)") from error
