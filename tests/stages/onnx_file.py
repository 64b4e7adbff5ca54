"""ONNX files written by hand, field by field of onnx.proto, for tests that need a model and have none."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

INT, INTS = 2, 7
"""AttributeProto.AttributeType."""


def model(
    nodes: Sequence[bytes], weights: Mapping[str, np.ndarray], takes: tuple[str, Sequence[int]], gives: Sequence[str]
) -> bytes:
    """A ModelProto of opset 11 with one float input of a fixed shape."""
    graph = b"".join(_sub(1, node) for node in nodes) + _text(2, "graph")
    graph += b"".join(_sub(5, _tensor(name, values)) for name, values in weights.items())
    graph += _sub(11, _value(*takes)) + b"".join(_sub(12, _value(name, ())) for name in gives)
    return _int(1, 8) + _sub(7, graph) + _sub(8, _int(2, 11))


def node(kind: str, takes: Sequence[str], gives: str, **attributes: int | Sequence[int]) -> bytes:
    """A NodeProto; attributes are whole numbers or lists of them."""
    made = b"".join(_text(1, name) for name in takes) + _text(2, gives) + _text(3, f"make {gives}") + _text(4, kind)
    for name, value in attributes.items():
        numbers = _int(3, value) if isinstance(value, int) else b"".join(_int(8, each) for each in value)
        made += _sub(5, _text(1, name) + numbers + _int(20, INT if isinstance(value, int) else INTS))
    return made


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = {"float32": 1, "int64": 7}[str(values.dtype)]
    return b"".join(_int(1, side) for side in values.shape) + _int(2, kind) + _text(8, name) + _sub(9, values.tobytes())


def _value(name: str, shape: Sequence[int]) -> bytes:
    sides = b"".join(_sub(1, _int(1, side)) for side in shape)
    return _text(1, name) + _sub(2, _sub(1, _int(1, 1) + _sub(2, sides)))


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _sub(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, value: str) -> bytes:
    return _sub(field, value.encode())


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = []
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return struct.pack(f"{len(out) + 1}B", *out, value)
