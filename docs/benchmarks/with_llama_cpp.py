#!/usr/bin/env python3
"""The same weights in llama.cpp: one stream and a prompt of a `model synth --shape bonsai-…` file, in tokens per second.

    ternfleet model synth --shape bonsai-8b --seed 1 --out bonsai-8b.gguf
    python3 docs/benchmarks/with_llama_cpp.py bonsai-8b.gguf --threads 2

It needs the package llama-cpp-python 0.3.36 or newer. That llama.cpp has ternary blocks of 64 weights (Q2_0, type 42), so each
block of 128 (PQ2_0, type 142) is written as two blocks with the same scale, to a file that is deleted at the end. Its prompts
take minutes at this size, so they are short.
"""

import argparse
import mmap
import os
import struct
import tempfile
import time

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY, F32, F16, Q2_0, PQ2_0 = 8, 9, 0, 1, 42, 142


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 8

    def number(self, kind):
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def string(self):
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def skip(self, kind):
        """A value; that of a 32-bit number is returned, which the alignment is."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            of, count = self.number("I"), self.number("Q")
            if of == STRING:
                for _ in range(count):
                    self.string()
            else:
                self.at += SCALARS[of] * count
            return None
        if kind == 4:
            return self.number("I")
        self.at += SCALARS[kind]
        return None


def halves(blocks):
    """Blocks of 34 bytes (scale, 32 bytes of codes) as twice as many of 18."""
    out = bytearray(len(blocks) // 34 * 36)
    for to, of in [*((n, n) for n in range(18)), (18, 0), (19, 1), *((20 + n, 18 + n) for n in range(16))]:
        out[to::36] = blocks[of::34]
    return out


def split(source, target):
    with open(source, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader, align = Reader(data), 32
    tensors, keys = reader.number("Q"), reader.number("Q")
    for _ in range(keys):
        key, value = reader.string(), reader.skip(reader.number("I"))
        if key == b"general.alignment":
            align = value
    end_of_keys, infos = reader.at, []
    for _ in range(tensors):
        name, dims = reader.string(), [reader.number("Q") for _ in range(reader.number("I"))]
        infos.append((name, dims, reader.number("I"), reader.number("Q")))

    def up(length):
        return -(-length // align) * align

    start, offset = up(reader.at), 0
    target.write(data[:end_of_keys])
    for name, dims, kind, _ in infos:
        count = 1
        for dim in dims:
            count *= dim
        size = {PQ2_0: count // 64 * 18, F32: 4 * count, F16: 2 * count}[kind]
        target.write(struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        target.write(struct.pack("<IQ", Q2_0 if kind == PQ2_0 else kind, offset))
        offset += up(size)
    target.write(bytes(up(target.tell()) - target.tell()))
    for _, dims, kind, at in infos:
        count = 1
        for dim in dims:
            count *= dim
        size = {PQ2_0: count // 128 * 34, F32: 4 * count, F16: 2 * count}[kind]
        content = data[start + at : start + at + size]
        content = halves(content) if kind == PQ2_0 else content
        target.write(content + bytes(up(len(content)) - len(content)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--gen", type=int, default=4)
    asked = parser.parse_args()
    import llama_cpp.llama_cpp as cpp

    cpp.llama_backend_init()
    with tempfile.NamedTemporaryFile(suffix=".gguf", dir=os.path.dirname(os.path.abspath(asked.model))) as file:
        split(asked.model, file)
        file.flush()
        model = cpp.llama_model_load_from_file(file.name.encode(), cpp.llama_model_default_params())
        if not model:
            raise SystemExit("llama.cpp did not load the file")
        options = cpp.llama_context_default_params()
        options.n_ctx, options.n_batch = asked.prompt + asked.gen + 32, 512
        options.n_threads = options.n_threads_batch = asked.threads
        context = cpp.llama_init_from_model(model, options)

        def decode(ids):
            ids = (cpp.llama_token * len(ids))(*ids)
            if cpp.llama_decode(context, cpp.llama_batch_get_one(ids, len(ids))) != 0:
                raise SystemExit("llama.cpp did not compute a step")
            cpp.llama_synchronize(context)

        decode(range(1, 9))
        began = time.perf_counter()
        decode(range(1, asked.prompt + 1))
        prompt = asked.prompt / (time.perf_counter() - began)
        began = time.perf_counter()
        for n in range(asked.gen):
            decode([n + 1])
        stream = asked.gen / (time.perf_counter() - began)
    print(f"llama.cpp: one stream {stream:.2f} tok/s, prompt of {asked.prompt} {prompt:.2f} tok/s")


if __name__ == "__main__":
    main()
