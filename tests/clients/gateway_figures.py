"""Figures of the HTTP gateway on a local fleet of its own: added latency, many streams, a large upload.

    python gateway_figures.py TERNFLEET [latency] [streams] [upload] [--seconds 60] [--clients 200] [--megabytes 200]

Prints one JSON object. TERNFLEET should be a release build. What each figure means stands in docs/http-figures.md.
"""

import argparse
import asyncio
import http.client
import json
import os
import pathlib
import signal
import statistics
import subprocess
import tempfile
import threading
import time

PROMPT = "Once upon a time there was a king who had three sons"


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


class Fleet:
    def __init__(self, program, workers):
        self.folder = tempfile.TemporaryDirectory(prefix="ternfleet-figures-")
        command = [program, "up", "--dir", self.folder.name, "--workers", str(workers), "--nats-port", "0", "--http-port", "0"]
        self.up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        addresses = pathlib.Path(self.folder.name, "addresses.json")
        until = time.monotonic() + 60
        while not addresses.exists():
            if self.up.poll() is not None or time.monotonic() > until:
                raise SystemExit("the fleet did not start")
            time.sleep(0.05)
        self.address = json.loads(addresses.read_text())["http"].removeprefix("http://").rstrip("/")
        self.host, port = self.address.rsplit(":", 1)
        self.port = int(port)

    def pid(self, part):
        return json.loads(pathlib.Path(self.folder.name, "processes.json").read_text())[part]

    def end(self):
        self.up.send_signal(signal.SIGINT)
        self.up.wait(30)
        self.folder.cleanup()


def latency(fleet, count):
    """One token, end to end over one kept-alive connection: gateway, bus, ledger, claim, engine, result and back."""
    connection = http.client.HTTPConnection(fleet.host, fleet.port)
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1, "temperature": 0})
    took, worker = [], []
    for i in range(count + 20):
        began = time.perf_counter()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        value = json.loads(answer.read())
        spent = 1000 * (time.perf_counter() - began)
        assert answer.status == 200, value
        if i >= 20:
            took.append(spent)
            worker.append(value.get("ternfleet", {}).get("total_ms", 0))
    return {
        "requests": count, "end_to_end_p50_ms": round(statistics.median(took), 2), "end_to_end_p95_ms": round(quantile(took, 0.95), 2),
        "of_it_in_the_worker_p50_ms": statistics.median(worker),
    }


async def stream(fleet, body, counts):
    reader, writer = await asyncio.open_connection(fleet.host, fleet.port, limit=1 << 20)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {fleet.address}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            counts["refused"] += 1
            return
        text, tokens, usage, done = "", 0, None, False
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if data == b"[DONE]":
                done = True
                break
            value = json.loads(data)
            usage = value.get("usage") or usage
            for choice in value.get("choices", []):
                text += choice["text"]
                if choice["logprobs"]:
                    here = len(choice["logprobs"]["tokens"])
                    counts["events"] += 1
                    counts["largest_event_tokens"] = max(counts["largest_event_tokens"], here)
                    tokens += here
        counts["streams"] += 1
        counts["tokens"] += tokens
        counts["texts"].add(text)
        if not done or not usage or usage["completion_tokens"] != tokens:
            counts["incomplete"] += 1
    finally:
        writer.close()


async def streams(fleet, clients, seconds):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 64, "temperature": 0, "logprobs": 0, "stream": True, "stream_options": {"include_usage": True}}).encode()
    counts = {"streams": 0, "events": 0, "tokens": 0, "incomplete": 0, "refused": 0, "broken": 0, "largest_event_tokens": 0, "texts": set()}
    until = time.monotonic() + seconds
    held = [0, 0]

    async def client():
        while time.monotonic() < until:
            held[0] += 1
            held[1] = max(held)
            try:
                await stream(fleet, body, counts)
            except (OSError, asyncio.IncompleteReadError):
                counts["broken"] += 1
            held[0] -= 1

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    spent = time.monotonic() - began
    texts = counts.pop("texts")
    return {"clients": clients, "at_once": held[1], "seconds": round(spent, 1), "different_texts": len(texts), "tok_s": round(counts["tokens"] / spent, 1), **counts}


def resident(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def upload(fleet, megabytes):
    """Growth of the coordinator's resident memory while a file streams in, and out again."""
    pid = fleet.pid("coordinator")
    line = json.dumps({"prompt": "x" * 900, "max_tokens": 4}) + "\n"
    block = (line * (1 << 20) )[: 1 << 20].encode()
    total = megabytes << 20
    boundary = "ternfleet-figures"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="large.jsonl"\r\nContent-Type: application/jsonl\r\n\r\n'.encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    before = peak = resident(pid)
    watching = threading.Event()

    def watch():
        nonlocal peak
        while not watching.is_set():
            peak = max(peak, resident(pid))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    connection = http.client.HTTPConnection(fleet.host, fleet.port, timeout=300)
    began = time.monotonic()
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
    connection.putheader("Content-Length", str(len(head) + total + len(tail)))
    connection.endheaders()
    connection.send(head)
    for _ in range(megabytes):
        connection.send(block)
    connection.send(tail)
    answer = connection.getresponse()
    value = json.loads(answer.read())
    up_s = time.monotonic() - began
    assert answer.status == 200 and value["bytes"] == total, value
    up_peak = peak
    began = time.monotonic()
    connection.request("GET", f"/v1/files/{value['id']}/content")
    answer = connection.getresponse()
    read = 0
    while block := answer.read(1 << 20):
        read += len(block)
    down_s = time.monotonic() - began
    watching.set()
    watcher.join()
    assert read == total, read
    return {
        "megabytes": megabytes, "resident_before_mib": round(before, 1), "upload_growth_mib": round(up_peak - before, 1),
        "with_download_growth_mib": round(peak - before, 1), "upload_s": round(up_s, 2), "download_s": round(down_s, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("figures", nargs="*", choices=["latency", "streams", "upload", []])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    wanted = options.figures or ["latency", "streams", "upload"]
    fleet = Fleet(options.program, 1)
    found = {"cpus": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 1)}
    try:
        if "latency" in wanted:
            found["latency"] = latency(fleet, options.requests)
        if "streams" in wanted:
            found["streams"] = asyncio.run(streams(fleet, options.clients, options.seconds))
        if "upload" in wanted:
            found["upload"] = upload(fleet, options.megabytes)
    finally:
        fleet.end()
    print(json.dumps(found, indent=1))


main()
