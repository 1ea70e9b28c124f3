"""Calls as messages: pickles, with large arrays beside them."""

from __future__ import annotations

import importlib
import pickle
import threading
from typing import Any

import pytest

from kvmlet._isolated.request import Aside, packed, unpacked

np: Any = importlib.import_module("numpy")


def sent(value: object) -> tuple[Any, bytes]:
    """The value as the guest has it, and the message."""
    aside = Aside()
    message = b"".join(packed(pickle.dumps(value, 5, buffer_callback=aside), aside.buffers))
    # It lies in memory that can be written.
    pickled, buffers = unpacked(bytearray(message))
    return pickle.loads(pickled, buffers=buffers), message


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"x" * 1_000_000,
        {"a": [1, "two", b"three"]},
    ],
)
def test_values_without_arrays_are_a_pickle(value: object) -> None:
    again, message = sent(value)
    assert again == value
    assert message == pickle.dumps(value, 5)


def test_large_arrays_lie_beside_the_pickle() -> None:
    rng = np.random.default_rng(1)
    value = [
        rng.random(100_000),
        rng.random(10),
        rng.integers(0, 9, (300, 300)).T,
        np.asfortranarray(rng.random((300, 100))),
        rng.random((300, 300))[::2, ::3],
        np.array(["2024-01-01"] * 20_000, dtype="M8[D]"),
        np.array([None, {"a": 1}], dtype=object),
    ]
    again, message = sent([*value, value[0]])
    for one, other in zip(again, [*value, value[0]], strict=True):
        assert one.dtype == other.dtype
        assert (one == other).all()
        # Functions may change their arguments.
        assert one.flags.writeable
    assert again[-1] is again[0]
    one = again[0]
    assert one.ctypes.data % 8 == 0
    assert one.base is not None
    assert len(message) < sum(array.nbytes for array in value) + 10_000
    one[:] = 0
    assert value[0].any()


def test_what_cannot_be_pickled_still_cannot() -> None:
    with pytest.raises(TypeError):
        sent([np.zeros(100_000), threading.Lock()])
