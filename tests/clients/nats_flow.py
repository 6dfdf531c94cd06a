"""A submitter in another language: nats-py and msgpack, nothing of ours, by the documented wire format (docs/wire.md).

    python nats_flow.py nats://127.0.0.1:PORT
"""

import asyncio
import io
import json
import secrets
import sys

import msgpack
import nats


def unwrap(reply):
    """A reply is {"Ok": value} or {"Err": {code, message, retry_after_ms}}."""
    value = msgpack.unpackb(reply.data)
    if "Err" in value:
        raise RuntimeError(f"{value['Err']['code']}: {value['Err']['message']}")
    return value["Ok"]


async def main(url):
    connection = await nats.connect(url)
    jetstream = connection.jetstream()
    name = f"input-{secrets.token_hex(8)}.jsonl"
    lines = [{"custom_id": f"py-{i}", "prompt": "Once upon a time", "max_tokens": 4 + i, "temperature": 0} for i in range(5)]
    try:
        files = await jetstream.object_store("files_default")
    except nats.js.errors.NotFoundError:
        files = await jetstream.create_object_store("files_default")
    await files.put(name, io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode()))
    create = {"tenant": "default", "idempotency_key": secrets.token_hex(8), "input_object": name, "name": "from python"}
    batch = unwrap(await connection.request("tf.api.batch_create", msgpack.packb(create), timeout=10))
    again = unwrap(await connection.request("tf.api.batch_create", msgpack.packb(create), timeout=10))
    assert again["id"] == batch["id"], "a repeated creation must answer with the first batch"
    print("ok   accepted as", batch["id"], "durability", batch["durability"])
    seen, after = {}, 0
    while True:
        ask = {"tenant": "default", "id": batch["id"], "after": after, "limit": 100, "wait_ms": 2000}
        page = unwrap(await connection.request("tf.api.results", msgpack.packb(ask), timeout=15))
        for result in page["lines"]:
            seen[result["line"]["custom_id"]] = result
        after = page["next"]
        if page["end"]:
            break
    assert sorted(seen) == [f"py-{i}" for i in range(5)], sorted(seen)
    assert all(result["outcome"]["text"]["text"] for result in seen.values())
    print("ok   five answers over plain NATS")
    try:
        unwrap(await connection.request("tf.api.batch_get", msgpack.packb({"tenant": "default", "id": "batch_unknown"}), timeout=10))
        raise SystemExit("FAIL an unknown batch was found")
    except RuntimeError as refusal:
        print("ok   an unknown batch is refused:", refusal)
    await connection.publish("tf.api.batch_create", b"\xc1 not msgpack")
    await connection.flush()
    unwrap(await connection.request("tf.api.batch_get", msgpack.packb({"tenant": "default", "id": batch["id"]}), timeout=10))
    print("ok   a message that makes no sense stops nobody")
    await connection.close()
    print("all rules hold")


asyncio.run(main(sys.argv[1]))
