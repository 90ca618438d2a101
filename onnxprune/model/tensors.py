"""Tensors as protobuf: checks, and their values as arrays."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError

_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_PACKED_BITS |= {"FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
DATA_FIELDS = ("raw_data", "string_data", *_TYPED_FIELDS)
_KNOWN_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_MAX_RANK = 64  # NumPy's
_MAX_DENSE_BYTES = 2**28


class Weights(Mapping[str, np.ndarray]):
    """A model's initializers as arrays. Each access makes a new array, so that none stays in memory.

    Arrays are read-only views of the tensor's bytes where its encoding allows. bfloat16, float8 and 4-bit types are
    those of ml_dtypes.
    """

    def __init__(self, proto: ModelProto) -> None:
        """Index the initializers of a model that `load` found valid."""
        self._tensors: dict[str, TensorProto] = {t.name: t for t in proto.graph.initializer}

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the values of an initializer."""
        return numpy_helper.to_array(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the graph's order."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of initializers."""
        return len(self._tensors)

    def tensor(self, name: str) -> TensorProto:
        """Return the initializer itself; changing it changes the model."""
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an initializer's shape without reading its values."""
        return tuple(self._tensors[name].dims)

    def dtype(self, name: str) -> np.dtype[np.generic]:
        """Return an initializer's element type without reading its values."""
        return helper.tensor_dtype_to_np_dtype(self._tensors[name].data_type)


def by_group(array: np.ndarray, groups: int) -> np.ndarray:
    """Swap the channel axes of a grouped convolution's weight: from ``(g o) i ...`` to ``(g i) o ...``.

    Applied twice, it returns the weight as it was.
    """
    outer, inner, *rest = array.shape
    split = array.reshape(groups, outer // groups, inner, *rest).swapaxes(1, 2)
    return split.reshape(groups * inner, outer // groups, *rest)


def multiplied(array: np.ndarray, axis: int, positions: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Return an array whose entries along an axis are products with the columns of a matrix, head by head.

    Args:
        array: the array.
        axis: the axis.
        positions: the position of each channel there, shape (heads, copies, n); others stay.
        matrices: the matrix of each head, shape (heads, n, n).
    """
    result = np.moveaxis(array, axis, -1).copy()
    for copies, matrix in zip(positions, matrices, strict=True):
        result[..., copies] = result[..., copies] @ matrix
    return np.moveaxis(result, -1, axis)


def weights(proto: ModelProto) -> Weights:
    """Return lazy access to the values of a model's initializers."""
    return Weights(proto)


def set_tensor(tensor: TensorProto, array: np.ndarray) -> None:
    """Store an array in a tensor, with the array's shape and type; its name and doc_string stay."""
    for field in (*DATA_FIELDS, "dims", "segment", "external_data", "data_location"):
        tensor.ClearField(field)
    if array.dtype.isbuiltin and array.dtype.kind in "biuf" and sys.byteorder == "little":
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend(array.shape)
        tensor.raw_data = array.tobytes()  # from_array would copy large arrays more often
    else:
        tensor.MergeFrom(numpy_helper.from_array(np.asarray(array, order="C")))


def elements(tensor: TensorProto | SparseTensorProto) -> int:
    """Return the number of elements that a tensor's dimensions call for."""
    return math.prod(tensor.dims)


def byte_size(tensor: TensorProto) -> int:
    """Return the size in bytes that a tensor's values have as raw data, by its type and dimensions."""
    return -(-elements(tensor) * _bits(tensor.data_type) // 8)


def raw_bytes(tensor: TensorProto) -> bytes:
    """Return a valid tensor's values as raw data, whichever field holds them."""
    if not tensor.HasField("raw_data"):
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor))
    return bytes(tensor.raw_data)


def check_type(tensor: TensorProto, where: str) -> None:
    """Check a tensor's type and dimensions, but not its data.

    Raises:
        ModelError: the type is unknown (OP112), or the dimensions are impossible (OP111).
    """
    if not is_known_type(tensor.data_type):
        raise ModelError("OP112", f"unknown data type {tensor.data_type}", where=where)
    _check_dims(tensor, where)


def check_data(tensor: TensorProto, where: str) -> None:
    """Check that a tensor of known type holds exactly the data that its dimensions call for.

    Raises:
        ModelError: it doesn't (OP110).
    """
    stored = {field: count for field in DATA_FIELDS if (count := len(getattr(tensor, field)))}
    if tensor.HasField("segment") or len(stored) > 1:
        raise ModelError("OP110", "the tensor's data is in segments or in two places", where=where)
    name, field = _type_name(tensor.data_type), helper.tensor_dtype_to_field(tensor.data_type)
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        field, wanted, unit = "raw_data", byte_size(tensor), "bytes"
    else:
        # One value per element, except that complex numbers are pairs, and types of 2 or 4 bits share a byte.
        share = 8 // _PACKED_BITS.get(name, 8)
        pairs = 2 if name.startswith("COMPLEX") else 1
        wanted, unit = -(-elements(tensor) * pairs // share), "values"
    if stored != ({field: wanted} if wanted else {}):
        found = ", ".join(f"{count} in {field}" for field, count in stored.items()) or "none"
        cause = f"shape {list(tensor.dims)} of {name} needs {wanted} {unit} in {field}"
        raise ModelError("OP110", f"{cause}, found {found}", where=where)
    try:
        for text in tensor.string_data:
            text.decode()
    except UnicodeDecodeError as error:
        raise ModelError("OP110", "a string of the tensor isn't UTF-8", where=where) from error


def densify(sparse: SparseTensorProto, where: str) -> TensorProto:
    """Return a sparse tensor as a dense one.

    Args:
        sparse: values of shape (n,) and indices, linear (n,) or by axis (n, rank); both are valid tensors.
        where: the place, for errors.

    Raises:
        ModelError: the tensor is malformed, or too large when dense (OP113).
    """
    _check_dims(sparse, where)
    dense = TensorProto(name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims)
    if byte_size(dense) > _MAX_DENSE_BYTES:
        cause = f"a sparse tensor of shape {list(sparse.dims)} is too large to be made dense"
        raise ModelError("OP113", cause, where=where)
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    linear = indices.shape == values.shape
    sizes = np.array([elements(sparse)] if linear else sparse.dims, dtype=np.int64)
    if (
        values.ndim != 1
        or values.dtype == object
        or indices.dtype != np.int64
        or not (linear or indices.shape == (len(values), len(sparse.dims)))
        or ((indices < 0) | (indices >= sizes)).any()
    ):
        raise ModelError("OP113", "the sparse tensor's indices don't fit its shape", where=where)
    array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    array[np.unravel_index(indices, array.shape) if linear else tuple(indices.T)] = values
    set_tensor(dense, array)
    return dense


def is_known_type(data_type: int) -> bool:
    """Whether onnx knows an element type."""
    return data_type in _KNOWN_TYPES


def _check_dims(tensor: TensorProto | SparseTensorProto, where: str) -> None:
    # Zeros are left out of the product: NumPy refuses shapes whose other sizes overflow.
    volume = math.prod(size for size in tensor.dims if size)
    if len(tensor.dims) > _MAX_RANK or min(tensor.dims, default=0) < 0 or volume >= 2**56:
        shape = ", ".join(map(str, tensor.dims[:8])) + (", ..." if len(tensor.dims) > 8 else "")
        raise ModelError("OP111", f"impossible dimensions [{shape}]", where=where)


def _bits(data_type: int) -> int:
    name = _type_name(data_type)
    return _PACKED_BITS.get(name) or 8 * helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _type_name(data_type: int) -> str:
    return str(TensorProto.DataType.Name(data_type))


def with_weights(proto: ModelProto, arrays: Mapping[str, np.ndarray]) -> ModelProto:
    """Return a copy of a model with new values for some initializers, converted to their types."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    stored = weights(copy)
    for name, array in arrays.items():
        set_tensor(stored.tensor(name), array.astype(stored.dtype(name)))
    return copy


_STATISTIC = "statistic of "
_PARAMETER = "a parameter, no weights"


def mark_statistic(tensor: TensorProto, leaves: Iterable[str]) -> None:
    """Note in an initializer that it was computed from others, by name."""
    tensor.doc_string = _STATISTIC + json.dumps(sorted(leaves))


def leaves_of_statistic(tensor: TensorProto) -> tuple[str, ...]:
    """Return what `mark_statistic` noted; nothing for other initializers."""
    if not tensor.doc_string.startswith(_STATISTIC):
        return ()
    try:
        found = json.loads(tensor.doc_string.removeprefix(_STATISTIC))
    except ValueError:  # a user's own text
        return ()
    return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()


def mark_parameter(tensor: TensorProto) -> None:
    """Note in an initializer that it isn't weights, though a layer reads it: none of its positions can be removed."""
    tensor.doc_string = _PARAMETER


def is_parameter(tensor: TensorProto) -> bool:
    """Whether `mark_parameter` noted that an initializer isn't weights."""
    return tensor.doc_string == _PARAMETER
