"""Models, input shapes and input arrays, read from command-line arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from onnxprune.cli.output import Output
from onnxprune.errors import PlanError, UsageError
from onnxprune.errors.words import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

    from onnxprune.data import Dataset
    from onnxprune.model.file import Model
    from onnxprune.planning.plan import PrunePlan
    from onnxprune.rewrite.comparison import Port
    from onnxprune.settings import DataSettings
    from onnxprune.workflow.analysis import TracedModel

    Arrays = dict[str, NDArray[Any]]

T = TypeVar("T")
Sizes: TypeAlias = tuple[int, ...] | int
Shapes: TypeAlias = dict[str, Sizes]
Named: TypeAlias = tuple[str | None, T]
"""A value for an input; None stands for a model's only input."""


def read_model(
    path: Path, shapes: Sequence[Named[Sizes]], files: Sequence[Named[Path]]
) -> tuple[Model, Shapes, Arrays | None]:
    """Load a model, and the shapes and arrays for its inputs.

    Args:
        path: the model.
        shapes: shapes of inputs.
        files: arrays for inputs, which also set the shapes.

    Returns:
        The model, the shapes of its inputs, and the arrays if there are any.

    Raises:
        ModelError: the model can't be read.
        UsageError: a name, shape or array doesn't fit the model (OP603, OP604).
        PlanError: a shape contradicts an array (OP302).
    """
    from onnxprune.model.file import load

    model = load(path)
    given = sizes_for(shapes, model.proto)
    arrays = read_arrays(files, model.proto) if files else None
    for name, array in (arrays or {}).items():
        shape = given.setdefault(name, array.shape)
        if shape != array.shape:
            cause = f"--input-shape {list(cast(tuple[int, ...], shape))} isn't the shape of --input {list(array.shape)}"
            raise PlanError("OP302", cause, where=name)
    return model, given, arrays


def sizes_for(shapes: Sequence[Named[Sizes]], proto: ModelProto) -> Shapes:
    """Return the shapes that were given for a model's inputs, and the sizes of symbolic dimensions.

    Raises:
        UsageError: there is no such input, or it has a shape already (OP603).
    """
    given: Shapes = by_name([s for s in shapes if not isinstance(s[1], int)], proto, "--input-shape", "OP603")
    return given | {str(symbol): size for symbol, size in shapes if isinstance(size, int)}


def open_model(
    out: Output,
    path: Path,
    shapes: Sequence[Named[Sizes]] = (),
    files: Sequence[Named[Path]] = (),
    *,
    plan: PrunePlan | None = None,
    policies: Mapping[str, Any] | None = None,
    data: DataSettings | None = None,
    transform: str | None = None,
    in_batches: bool = False,
) -> tuple[TracedModel, Arrays | None]:
    """Load and trace a model with the shapes given for its inputs.

    Args:
        out: shows progress.
        path: the model.
        shapes: shapes of inputs.
        files: arrays for inputs, which also set the shapes.
        plan: a plan for the model, see `analyze`.
        policies: what is removed together.
        data: data whose first sample sets the sizes of symbolic dimensions.
        transform: a function that the model passes through first.
        in_batches: whether a batch size fixed at 1 becomes symbolic, see `analyze`.

    Returns:
        The traced model, and the arrays if there are any.

    Raises:
        OnnxPruneError: see `read_model` and `analyze`.
    """
    from onnxprune.workflow.analysis import analyze

    with out.step("load"):
        model, given, arrays = read_model(path, shapes, files)
    with out.step("trace"):
        traced = analyze(
            *(model, given),
            plan=plan,
            inputs=arrays,
            data=data,
            consume=True,
            transform=transform,
            in_batches=in_batches,
            **(policies or {}),
        )
    return traced, arrays


def note_fixed_batch(out: Output, samples: Dataset, batch: int | None) -> None:
    """Say it if a batch size that the user gave has no effect, as the model only takes another."""
    fixed = getattr(samples, "fixed_batch", None)
    if batch is not None and fixed not in (None, batch):
        hint = "export it with a symbolic first axis to run larger batches"
        out.note(f"the model's batch size is fixed at {fixed}, so --batch {batch} has no effect; {hint}")


def sample_settings(given: Mapping[str, Any]) -> DataSettings:
    """Return the settings of data that only show sizes, and allow functions of the user's.

    Raises:
        PlanError: a setting is out of range (OP303), or preprocessing is given without data (OP302).
    """
    from onnxprune.settings import DataSettings, build

    if "preprocess" in given and "data" not in given:
        raise PlanError("OP302", "`preprocess` needs inputs", hint="give some with `data`")
    user_functions(given.get("data"))
    return build(DataSettings, given)


def user_functions(*names: Any) -> None:
    """Allow imports from the working directory, as for `python -m`, if a name is module:function."""
    from onnxprune.runtime.functions import is_function_name

    if any(isinstance(name, str) and is_function_name(name) for name in names) and "" not in sys.path:
        sys.path.insert(0, "")


def by_name(values: Sequence[tuple[str | None, T]], proto: ModelProto, option: str, code: str) -> dict[str, T]:
    """Assign values to a model's inputs; a value without a name is for the only input.

    Raises:
        UsageError: there is no such input, or it has a value already (the code given).
    """
    from onnxprune.rewrite.comparison import inputs_of

    names = [port.name for port in inputs_of(proto)]
    found: dict[str, T] = {}
    for name, value in values:
        if name is None and len(names) != 1:
            hint = f"write {option} NAME..., with one of: {', '.join(names)}"
            raise UsageError(code, f"the model has {len(names)} inputs", where=option, hint=hint)
        key = names[0] if name is None else name
        if key not in names:
            near = get_close_matches(key, names, n=1) or names
            hint = f"its inputs are: {', '.join(near)}"
            raise UsageError(code, f"the model has no input {key!r}", where=option, hint=hint)
        if key in found:
            raise UsageError(code, f"input {key!r} is given twice", where=option)
        found[key] = value
    return found


def read_arrays(files: Sequence[tuple[str | None, Path]], proto: ModelProto) -> Arrays:
    """Read an array for every input of a model.

    Raises:
        UsageError: a file can't be read, or an array has another type or shape than its input (OP604).
    """
    from onnxprune.rewrite.comparison import inputs_of

    paths = by_name(files, proto, "--input", "OP604")
    arrays = {}
    for port in inputs_of(proto):
        if port.name not in paths:
            raise UsageError("OP604", f"no array for input {port.name!r}", where="--input")
        arrays[port.name] = _fitting(_read(paths[port.name]), port, str(paths[port.name]))
    return arrays


def _read(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
    except OSError as error:
        cause = f"can't read the file: {error.strerror or error}"
        raise UsageError("OP604", cause, where=str(path)) from error
    except Exception as error:  # NumPy raises many kinds of errors for malformed files
        cause = f"not a .npy file of numbers: {one_line(error)}"
        hint = "write one with numpy.save(path, array)"
        raise UsageError("OP604", cause, where=str(path), hint=hint) from error
    return array


def _fitting(array: NDArray[Any], port: Port, where: str) -> NDArray[Any]:
    from onnxprune.report.layout import dims

    if array.dtype.name != port.type:
        cause = f"input {port.name!r} takes {port.type}, the file holds {array.dtype.name}"
        hint = f"convert it with array.astype({port.type!r})"
        raise UsageError("OP604", cause, where=where, hint=hint)
    expected = port.dims
    fits = expected is None or (
        len(expected) == array.ndim
        and all(n == m for n, m in zip(expected, array.shape, strict=True) if isinstance(n, int))
    )
    if not fits:
        assert expected is not None
        cause = f"input {port.name!r} takes {dims(expected)}, the file holds {dims(array.shape)}"
        raise UsageError("OP604", cause, where=where)
    return array
