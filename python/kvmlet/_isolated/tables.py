"""Tables of Arrow and pandas as plain data: types by name, and the buffers of each column.

The host reads no message of Arrow's own format: its reader would decompress what the guest says,
and follow places that the guest chose. Here types are those of a list, and buffers have at least
the size that type and length ask for. Arrow checks the content before anybody uses it.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from kvmlet._isolated.codec import FRAME, SERIES, TABLE, DataError, NotData, UnknownDataclass

if TYPE_CHECKING:
    from collections.abc import Callable

_SIMPLE = (
    *("null", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "date32", "date64"),
    *("string", "large_string", "binary", "large_binary"),
)
# With a unit of time, a scale or a zone.
_WITH_ARGUMENTS = ("timestamp", "duration", "time32", "time64", "decimal128")
_MAX_ROWS = 1 << 31
_MAX_COLUMNS = 1 << 16
# Types inside of each other.
_MAX_TYPES = 8
# Of a cell of pandas that is an object, and of one that is a number.
_OBJECT_BYTES = 200
_NUMBER_BYTES = 16


# ---- the guest's side ----


def data_of_table(kind: type, value: Any) -> tuple[str, object] | None:
    """(word, content) of a table, frame or series; None for anything else. Raises NotData."""
    pandas = sys.modules.get("pandas")
    series = getattr(pandas, "Series", None)
    if kind in (series, getattr(pandas, "DataFrame", None)):
        try:
            importlib.import_module("pyarrow")
        except ImportError:
            raise NotData(
                f"it contains a {kind.__name__} of pandas, for which pyarrow is missing"
            ) from None
        if kind is series:
            return SERIES, (_frame(pandas, value.to_frame("0")), value.name)
        return FRAME, _frame(pandas, value)
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None and kind is getattr(pyarrow, "Table", None):
        return TABLE, _table(pyarrow, value)
    return None


def _frame(pandas: Any, frame: Any) -> tuple[object, ...]:
    """(table, labels of its columns, its index)."""
    pa = importlib.import_module("pyarrow")
    labels = list(frame.columns)
    index = frame.index
    plain = frame.set_axis([str(number) for number in range(len(labels))], axis=1)
    about: tuple[object, ...]
    if type(index) is pandas.RangeIndex:
        about = ("range", (index.start, index.stop, index.step), index.name)
    else:
        names = list(index.names)
        levels = index.to_frame(index=False)
        for number in range(len(names)):
            plain.insert(len(labels) + number, f"i{number}", levels.iloc[:, number].to_numpy())
        about = ("columns", len(names), names)
    try:
        table = pa.Table.from_pandas(plain, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise NotData(f"it contains a frame that Arrow cannot hold: {error}") from None
    return _table(pa, table), labels, about


def _table(pa: Any, table: Any) -> tuple[object, ...]:
    """(number of rows, columns as (name, type, array))."""
    # Written and read once: slices become whole arrays, which start at their first byte.
    sink = pa.BufferOutputStream()
    combined = table.combine_chunks()
    try:
        with pa.ipc.new_stream(sink, combined.schema.remove_metadata()) as stream:
            stream.write_table(combined.replace_schema_metadata(None))
        whole = pa.ipc.open_stream(sink.getvalue()).read_all().combine_chunks()
    except pa.ArrowInvalid as error:
        raise NotData(f"it contains a table that Arrow cannot write: {error}") from None
    columns = []
    for field, column in zip(whole.schema, whole.columns, strict=True):
        array = column.chunk(0) if column.num_chunks else pa.array([], field.type)
        columns.append((field.name, _type_data(pa, field.type), _array_data(pa, array)))
    return whole.num_rows, columns


def _type_data(pa: Any, kind: Any) -> object:
    for name in _SIMPLE:
        if kind.equals(getattr(pa, name)()):
            return name
    types = pa.types
    if types.is_timestamp(kind):
        return "timestamp", kind.unit, kind.tz
    if types.is_duration(kind):
        return "duration", kind.unit
    if types.is_time32(kind) or types.is_time64(kind):
        return "time32" if types.is_time32(kind) else "time64", kind.unit
    if types.is_decimal128(kind):
        return "decimal128", kind.precision, kind.scale
    if types.is_dictionary(kind):
        inner = _type_data(pa, kind.index_type), _type_data(pa, kind.value_type)
        return "dictionary", *inner, kind.ordered
    if types.is_list(kind):
        return "list", _type_data(pa, kind.value_type)
    raise NotData(f"it contains values of Arrow's type {kind}")


def _array_data(pa: Any, array: Any) -> tuple[object, ...]:
    """(length, buffers, inner arrays)."""
    if pa.types.is_dictionary(array.type):
        inner = [_array_data(pa, array.indices), _array_data(pa, array.dictionary)]
        return len(array), [], inner
    if array.offset:
        array = pa.concat_arrays([array, array.slice(0, 0)])
    buffers = array.buffers()
    own = buffers[:2] if pa.types.is_list(array.type) else buffers
    content = [None if each is None else each.to_pybytes() for each in own]
    inner = [_array_data(pa, array.values)] if pa.types.is_list(array.type) else []
    return len(array), content, inner


# ---- the host's side ----


def table(charge: Callable[[int], None], content: Any) -> Any:
    """The table of Arrow in `content`. Raises DataError."""
    pa = _module("pyarrow")
    return _checked(pa, charge, content)


def frame(charge: Callable[[int], None], content: Any) -> Any:
    """The frame of pandas in `content`. Raises DataError."""
    pd, pa = _module("pandas"), _module("pyarrow")
    match content:
        case (held, list(labels), tuple(about)):
            pass
        case _:
            raise DataError("not a frame")
    read = _checked(pa, charge, held)
    # Cells become objects, or numbers in another place.
    for kind in read.schema.types:
        is_number = pa.types.is_primitive(kind) or pa.types.is_dictionary(kind)
        charge(read.num_rows * (_NUMBER_BYTES if is_number else _OBJECT_BYTES))
    names = [f"{number}" for number in range(read.num_columns)]
    try:
        made = read.rename_columns(names).to_pandas()
        index = _index(pd, made, about, len(labels))
        made = made.iloc[:, : len(labels)]
        made.columns = pd.Index(labels) if labels else made.columns
        made.index = index
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - pandas has its own for each thing
        raise DataError(f"not a frame: {error}") from None
    return made


def series(charge: Callable[[int], None], content: Any) -> Any:
    """The series of pandas in `content`. Raises DataError."""
    match content:
        case (held, name):
            made = frame(charge, held)
        case _:
            raise DataError("not a series")
    if made.shape[1] != 1:
        raise DataError("not a series")
    try:
        return made.iloc[:, 0].rename(name)
    except (TypeError, ValueError):
        raise DataError("not a series") from None


def _index(pd: Any, made: Any, about: tuple[Any, ...], columns: int) -> Any:
    match about:
        case ("range", (int(start), int(stop), int(step)), name) if (
            step and made.shape[1] == columns
        ):
            return pd.RangeIndex(start, stop, step, name=name)
        case ("columns", int(count), list(names)) if (
            0 < count == len(names) and made.shape[1] == columns + count
        ):
            levels = [made.iloc[:, columns + number] for number in range(count)]
            if count == 1:
                return pd.Index(levels[0]).rename(names[0])
            return pd.MultiIndex.from_arrays(levels, names=names)
    raise DataError("not an index")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UnknownDataclass(f"a table of {name}") from None


def _checked(pa: Any, charge: Callable[[int], None], content: Any) -> Any:
    match content:
        case (int(rows), list(columns)) if 0 <= rows <= _MAX_ROWS and len(columns) <= _MAX_COLUMNS:
            pass
        case _:
            raise DataError("not a table")
    names: list[str] = []
    arrays: list[Any] = []
    try:
        for column in columns:
            match column:
                case (str(name), kind, tuple(array)):
                    names.append(name)
                    arrays.append(_array(pa, charge, _type(pa, kind), array, 0))
                case _:
                    raise DataError("not a column")
            if len(arrays[-1]) != rows:
                raise DataError("columns of several lengths")
            arrays[-1].validate(full=True)
        return pa.Table.from_arrays(arrays, names=names)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not a table: {error}") from None


def _type(pa: Any, kind: Any, depth: int = 0) -> Any:
    if depth > _MAX_TYPES:
        raise DataError("a type nested too deep")
    match kind:
        case str(name) if name in _SIMPLE:
            return getattr(pa, name)()
        case ("dictionary", index, values, bool(ordered)):
            return pa.dictionary(
                _type(pa, index, _MAX_TYPES), _type(pa, values, depth + 1), ordered
            )
        case ("list", values):
            return pa.list_(_type(pa, values, depth + 1))
        case (str(name), *arguments) if name in _WITH_ARGUMENTS and all(
            isinstance(each, (str, int, type(None))) for each in arguments
        ):
            return getattr(pa, name)(*arguments)
    raise DataError("an unknown type of Arrow's")


def _array(pa: Any, charge: Callable[[int], None], kind: Any, content: Any, depth: int) -> Any:
    match content:
        case (int(length), list(buffers), list(inner)) if (
            0 <= length <= _MAX_ROWS and depth <= _MAX_TYPES + 1
        ):
            pass
        case _:
            raise DataError("not an array of Arrow's")
    # Whoever looks at it may make a value for each.
    charge(length)
    if not all(isinstance(each, bytes | None) for each in buffers):
        raise DataError("buffers that are none")
    types = pa.types
    if types.is_dictionary(kind):
        if buffers or len(inner) != 2:
            raise DataError("not a dictionary of Arrow's")
        indices = _array(pa, charge, kind.index_type, inner[0], depth + 1)
        values = _array(pa, charge, kind.value_type, inner[1], depth + 1)
        indices.validate(full=True)
        values.validate(full=True)
        if len(indices) != length:
            raise DataError("not a dictionary of Arrow's")
        return pa.DictionaryArray.from_arrays(indices, values, ordered=kind.ordered)
    children = []
    if types.is_list(kind):
        if len(inner) != 1:
            raise DataError("not a list of Arrow's")
        children = [_array(pa, charge, kind.value_type, inner[0], depth + 1)]
    elif inner:
        raise DataError("an array with arrays inside")
    _check_sizes(types, kind, length, buffers)
    held = [None if each is None else pa.py_buffer(each) for each in buffers]
    return pa.Array.from_buffers(kind, length, held, children=children)


def _check_sizes(types: Any, kind: Any, length: int, buffers: list[bytes | None]) -> None:
    """Raises DataError unless each buffer has what `length` values take."""
    validity = -(-length // 8)
    if types.is_null(kind):
        least_bytes = [0]
    elif types.is_list(kind):
        least_bytes = [validity, 4 * (length + 1)]
    elif types.is_string(kind) or types.is_binary(kind):
        least_bytes = [validity, 4 * (length + 1), 0]
    elif types.is_large_string(kind) or types.is_large_binary(kind):
        least_bytes = [validity, 8 * (length + 1), 0]
    else:
        least_bytes = [validity, -(-length * kind.bit_width // 8)]
    if len(buffers) != len(least_bytes):
        raise DataError("another number of buffers")
    for number, (buffer, least) in enumerate(zip(buffers, least_bytes, strict=True)):
        # Without the first one all values are there. Of no values there may be no buffers at all.
        is_missing = buffer is None and number > 0 and least > 0
        if length and (is_missing or (buffer is not None and len(buffer) < least)):
            raise DataError("a buffer that is missing, or too short")
