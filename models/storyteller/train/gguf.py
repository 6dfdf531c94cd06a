"""GGUF v3 as far as this model needs it: a writer and a reader, with the I2_S packing.

I2_S, the 128/32 layout: the row-major weights are cut into blocks of 128, each 32 bytes; byte j holds elements
j, j+32, j+64, j+96 of its block, most significant pair first, as codes 0, 1, 2 for -1, 0, +1. One f32 scale for
the whole tensor follows, then 28 bytes of padding.
"""

import struct
from pathlib import Path

import numpy as np

F32, F16, I2_S = 0, 1, 36
ALIGNMENT = 32
U32, F32_VALUE, BOOL, STRING, ARRAY, I32_VALUE, U64 = 4, 6, 7, 8, 9, 5, 10
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", U32: "<I", I32_VALUE: "<i", F32_VALUE: "<f", BOOL: "<?", U64: "<Q", 11: "<q", 12: "<d"}


def pack_i2s(weights: np.ndarray, scale: float) -> bytes:
    """weights: (M, K) of -1, 0, +1 with K a multiple of 128."""
    assert weights.shape[1] % 128 == 0
    codes = (weights.astype(np.int8) + 1).astype(np.uint8).reshape(-1, 4, 32)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return packed.tobytes() + struct.pack("<f", scale) + bytes(28)


def unpack_i2s(data: bytes, k: int, m: int) -> tuple[np.ndarray, np.float32]:
    """((M, K) int8 of -1, 0, +1, scale)."""
    packed = np.frombuffer(data, np.uint8, k * m // 4).reshape(-1, 1, 32)
    codes = packed >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
    if (codes == 3).any():
        raise ValueError("I2_S code 3 means nothing")
    scale = np.frombuffer(data, "<f4", 1, k * m // 4)[0]
    return (codes.astype(np.int8) - 1).reshape(m, k), scale


def string(s: str) -> bytes:
    raw = s.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, v) -> bytes:
    return string(v) if kind == STRING else struct.pack(SCALARS[kind], v)


def write(path: Path, metadata: list[tuple], tensors: list[tuple]) -> None:
    """metadata: (key, kind, value) or (key, ARRAY, element kind, values); tensors: (name, dims, type, bytes).

    dims come in GGUF order, the input features first.
    """
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, kind, *rest in metadata:
        head += string(key) + struct.pack("<I", kind)
        if kind == ARRAY:
            element, values = rest
            head += struct.pack("<IQ", element, len(values)) + b"".join(value(element, v) for v in values)
        else:
            head += value(kind, rest[0])
    offset, body = 0, []
    for name, dims, kind, data in tensors:
        head += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        body.append(data + bytes(-len(data) % ALIGNMENT))
        offset += len(body[-1])
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + b"".join(body))


class Reader:
    """Metadata as a dict, tensors by name."""

    def __init__(self, path: Path):
        self.data, self.at = path.read_bytes(), 0
        magic, version, n_tensors, n_keys = self._take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"{path}: not a GGUF v3 file")
        self.metadata = dict(self._entry() for _ in range(n_keys))
        self.infos = dict(self._info() for _ in range(n_tensors))
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        self.start = -(-self.at // alignment) * alignment

    def _take(self, form: str) -> tuple:
        found = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return found

    def _string(self) -> str:
        (n,) = self._take("<Q")
        self.at += n
        return self.data[self.at - n : self.at].decode("utf-8")

    def _value(self, kind: int):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, n = self._take("<IQ")
            return [self._value(element) for _ in range(n)]
        return self._take(SCALARS[kind])[0]

    def _entry(self) -> tuple:
        key = self._string()
        return key, self._value(self._take("<I")[0])

    def _info(self) -> tuple:
        name = self._string()
        (n_dims,) = self._take("<I")
        *dims, kind, offset = self._take(f"<{n_dims}QIQ")
        return name, (dims, kind, offset)

    def tensor(self, name: str):
        """f32 array, or (int8 ternary array, scale) for I2_S; rows are outputs."""
        dims, kind, offset = self.infos[name]
        begin, n = self.start + offset, int(np.prod(dims))
        if kind == I2_S:
            return unpack_i2s(self.data[begin : begin + n // 4 + 32], *dims)
        form = {F32: "<f4", F16: "<f2"}[kind]
        return np.frombuffer(self.data, form, n, begin).astype(np.float32).reshape(dims[::-1])
