"""click's type of parameters, which can be subscripted at run time from click 8.4 on only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click import ParamType
else:

    class ParamType(click.ParamType):
        """A type of parameters that says what it converts to."""

        def __class_getitem__(cls, _: Any) -> type[click.ParamType]:
            """Take what it converts to, for whoever checks types."""
            return cls


__all__ = ["ParamType"]
