"""A worker in another language: nats-py, msgpack and blake3, nothing of ours, by the documented wire format (docs/wire.md).

    python foreign_worker.py nats://127.0.0.1:PORT

It serves a model of its own, "shout", which says the prompt in capitals, one word a token. A batch for that model is
submitted beside it, so every answer must be this worker's.
"""

import asyncio
import io
import json
import secrets
import sys
import time

import msgpack
import nats
from blake3 import blake3
from nats.js.errors import APIError, NotFoundError

WORKER = f"py-{secrets.token_hex(4)}"
MODEL, DIGEST, NUMERICS = "shout", "shout-1", "python-1"
JOBS = 6


def now_ms():
    return int(time.time() * 1000)


def ids_digest(ids):
    """The first eight bytes, little-endian, of BLAKE3 over the ids, 32 bits each, little-endian."""
    digest = blake3(b"".join(i.to_bytes(4, "little") for i in ids)).digest()
    return int.from_bytes(digest[:8], "little")


class Worker:
    def __init__(self, connection):
        self.connection = connection
        self.jetstream = connection.jetstream()
        self.leader = 0
        self.done = self.failed = self.tokens = 0
        self.running = None
        self.assigned = asyncio.get_running_loop().create_future()

    async def beat(self):
        """Point 1: a heartbeat each second."""
        started = now_ms()
        while True:
            heartbeat = {
                "worker": WORKER, "pod": "pod-python", "host": "host-python", "pod_class": "foreign",
                "price_usd_micro_per_hour": 100_000, "state": "ready", "model": MODEL, "model_digest": DIGEST,
                "numerics": NUMERICS, "context_tokens": 2048, "slots": 1, "slots_in_use": 1 if self.running else 0,
                "kv_pages": 64, "kv_pages_free": 64, "threads": 1, "isa": "python",
                "calibration": [{"batch": 1, "tok_s": 50.0}], "prefill_tok_s": 500.0, "decode_tok_s": 50.0,
                "counters": {"jobs_done": self.done, "jobs_failed": self.failed, "decode_tokens": self.tokens},
                "leader_seen": self.leader, "version": "python", "started_at": started, "at": now_ms(),
                "running": [self.running] if self.running else [],
            }
            await self.connection.publish(f"tf.fleet.heartbeat.{WORKER}", msgpack.packb(heartbeat))
            await asyncio.sleep(1)

    async def obey(self, message):
        control = msgpack.unpackb(message.data)
        self.leader = max(self.leader, control["leader"])
        order = control["order"]
        if isinstance(order, dict) and "assigned" in order and not self.assigned.done():
            self.assigned.set_result(order["assigned"])

    async def work(self):
        queues = await asyncio.wait_for(self.assigned, 20)
        stream = f"WORK-{queues['shard']}"
        lanes = [await self.jetstream.pull_subscribe_bind(consumer=queues[lane], stream=stream) for lane in ("interactive", "batch")]
        while True:
            for lane in lanes:
                try:
                    messages = await lane.fetch(1, timeout=0.3)
                except nats.errors.TimeoutError:
                    continue
                for message in messages:
                    await self.run(message)

    async def run(self, message):
        work = msgpack.unpackb(message.data)
        job, subject = work["job"], f"tf.ckpt.{work['job']['batch']}.{work['job']['index']}"
        # Point 2: an old leader's message is void.
        if work["leader"] < self.leader:
            return await message.ack_sync()
        self.leader = work["leader"]
        assert (work["model_digest"], work["numerics"]) == (DIGEST, NUMERICS), work
        # Point 3: the claim, by compare-and-set on the job's checkpoint.
        try:
            last = await self.jetstream.get_last_msg("CHECKPOINTS", subject)
            sequence, attempt = last.seq, msgpack.unpackb(last.data)["attempt"] + 1
        except NotFoundError:
            sequence, attempt = 0, work["attempts_before"] + 1
        claim = {
            "job": job, "epoch": work["epoch"], "attempt": attempt, "owner": WORKER, "host": "host-python",
            "leader": work["leader"], "model_digest": DIGEST, "numerics": NUMERICS, "generated": [], "claim": True,
            "released": False, "at": now_ms(),
        }
        try:
            await self.jetstream.publish(subject, msgpack.packb(claim), headers={"Nats-Expected-Last-Subject-Sequence": str(sequence)})
        except APIError as refusal:
            assert refusal.err_code == 10071, refusal
            return await message.ack_sync()
        self.running = {"job": job, "epoch": work["epoch"], "generated": 0}
        began = now_ms()
        outcome, prompt_tokens, ids = self.generate(work["input"]["inline"])
        result = {
            "job": job, "tenant": work["tenant"], "epoch": work["epoch"], "attempt": attempt, "worker": WORKER,
            "tag": work["tag"], "line": work["line"], "outcome": outcome,
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(ids)},
            "timing": {"queued_ms": 0, "first_token_ms": 1, "total_ms": now_ms() - began}, "finished_at": now_ms(),
        }
        # Point 6: the result expects that nothing is there; only then is the work acknowledged.
        subject = f"tf.result.{work['tenant']}.{job['batch']}.{job['index']}.{WORKER}"
        await self.jetstream.publish(subject, msgpack.packb(result), headers={"Nats-Expected-Last-Subject-Sequence": "0"})
        await message.ack_sync()
        self.running = None
        self.tokens += len(ids)
        self.done += 1

    def generate(self, request):
        words = request["prompt"]["text"].split()
        if "fail" in words:
            return {"failed": {"code": "invalid_request", "message": "this model does not say that"}}, len(words), []
        limit = request["max_tokens"] or len(words)
        said = words[:limit]
        ids = [len(word) for word in said]
        finish = "length" if len(words) > limit else "stop"
        return {"text": {"text": " ".join(said).upper(), "finish": finish, "ids_digest": ids_digest(ids)}}, len(words), ids


def unwrap(reply):
    value = msgpack.unpackb(reply.data)
    if "Err" in value:
        raise RuntimeError(f"{value['Err']['code']}: {value['Err']['message']}")
    return value["Ok"]


async def submit(connection):
    jetstream = connection.jetstream()
    files = await jetstream.object_store("files_default")
    lines = [{"custom_id": f"job-{i}", "model": MODEL, "prompt": f"once upon a time number {i}", "max_tokens": 5} for i in range(JOBS)]
    lines.append({"custom_id": "refused", "model": MODEL, "prompt": "please fail", "max_tokens": 5})
    name = f"input-{secrets.token_hex(8)}.jsonl"
    await files.put(name, io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode()))
    create = {"tenant": "default", "idempotency_key": secrets.token_hex(8), "input_object": name, "name": "for a foreign worker"}
    return unwrap(await connection.request("tf.api.batch_create", msgpack.packb(create), timeout=10))["id"]


async def answers(connection, batch):
    seen, after = {}, 0
    while True:
        ask = {"tenant": "default", "id": batch, "after": after, "limit": 100, "wait_ms": 1000}
        page = unwrap(await connection.request("tf.api.results", msgpack.packb(ask), timeout=10))
        seen.update({line["line"]["custom_id"]: line for line in page["lines"]})
        after = page["next"]
        if page["end"]:
            return seen


async def main(url):
    connection = await nats.connect(url)
    worker = Worker(connection)
    await connection.subscribe(f"tf.fleet.control.{WORKER}", cb=worker.obey)
    await connection.subscribe("tf.fleet.control.all", cb=worker.obey)
    tasks = [asyncio.create_task(worker.beat()), asyncio.create_task(worker.work())]
    await asyncio.wait_for(asyncio.shield(worker.assigned), 20)
    print("ok   the coordinator assigned queues to a worker it had never seen")
    batch = await submit(connection)
    reading = asyncio.create_task(asyncio.wait_for(answers(connection, batch), 60))
    await asyncio.wait([reading, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
    seen = await reading
    assert len(seen) == JOBS + 1, sorted(seen)
    for i in range(JOBS):
        answer = seen[f"job-{i}"]
        assert answer["worker"] == WORKER, answer
        assert answer["outcome"]["text"]["text"] == "ONCE UPON A TIME NUMBER", answer
        assert answer["outcome"]["text"]["finish"] == "length", answer
    print(f"ok   {JOBS} jobs were claimed, answered and committed by a worker in Python")
    assert seen["refused"]["outcome"]["failed"]["code"] == "invalid_request", seen["refused"]
    print("ok   its refusal of a job is an error line")
    pods = unwrap(await connection.request("tf.api.pods", msgpack.packb(None), timeout=10))
    mine = [pod for pod in pods if pod["heartbeat"]["worker"] == WORKER]
    assert mine and mine[0]["live"] and mine[0]["heartbeat"]["pod_class"] == "foreign", pods
    print("ok   it is listed with its class and price")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await connection.close()
    print("all rules hold")


asyncio.run(main(sys.argv[1]))
