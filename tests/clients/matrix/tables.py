"""The module `ternfleet` of the wheel: every kind of table against a running fleet, and faults of the network against a
server that makes them.

    python tables.py http://127.0.0.1:PORT

Called by tests/tests/clients.rs.
"""

import _thread
import ast
import datetime
import http.server
import json
import os
import pathlib
import re
import sys
import tempfile
import threading
import unittest

import pandas
import polars
import pyarrow

SOURCES = pathlib.Path(__file__).resolve().parents[3] / "python"
sys.path.insert(0, str(SOURCES))
for setting in ("TERNFLEET_API_KEY", "TERNFLEET_BASE_URL"):
    os.environ.pop(setting, None)

import ternfleet  # noqa: E402

base = sys.argv.pop(1)
ROWS = [{"who": "king", "years": 1.5}, {"who": None, "years": None}, {"who": "fox", "years": 2.0}]
SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"enum": ["old", "young"]},
        "sons": {"type": "integer", "minimum": 0, "maximum": 9},
        "good": {"type": ["boolean", "null"]},
        "parts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 2},
    },
    "required": ["age", "sons", "good", "parts"],
    "additionalProperties": False,
}
ADDED = ["age", "sons", "good", "parts", "finish_reason", "prompt_tokens", "completion_tokens", "error"]
ASKED = {"prompt": "The {who} said", "schema": SCHEMA, "temperature": 0, "max_tokens": 60}


class OnlyStream:
    """What any library with Arrow's C interface hands over."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class AgainstAFleet(unittest.TestCase):
    client = ternfleet.Client(base)

    def test_every_kind_of_table_comes_back_as_it_went_with_the_same_answers(self):
        asked = dict(ASKED)
        prompt = asked.pop("prompt")
        rows = self.client.run(ROWS, prompt, **asked)
        self.assertEqual([list(row) for row in rows], [["who", "years", *ADDED]] * 3)
        self.assertEqual([row["who"] for row in rows], ["king", None, "fox"])
        for row in (rows[0], rows[2]):
            self.assertIn(row["age"], ("old", "young"), row)
            self.assertEqual((row["finish_reason"], row["error"]), ("stop", None))
            self.assertGreater(row["completion_tokens"], 0)
        self.assertEqual(rows[1], {**ROWS[1], **dict.fromkeys(ADDED), "error": "`who` is null"})

        arrow = self.client.run(pyarrow.Table.from_pylist(ROWS), prompt, **asked)
        self.assertEqual(arrow.to_pylist(), rows)
        types = ["string", "int64", "bool", "list<item: int64>", "string", "int64", "int64", "string"]
        self.assertEqual([str(field.type) for field in arrow.schema][2:], types)

        frame = self.client.run(polars.DataFrame(ROWS), prompt, **asked)
        self.assertEqual(frame.to_dicts(), rows)
        self.assertEqual(frame.schema["parts"], polars.List(polars.Int64))

        ours = pandas.DataFrame(ROWS, index=["a", "b", "c"])
        panda = self.client.run(ours, prompt, **asked)
        self.assertEqual(list(ours.columns), ["who", "years"])
        self.assertEqual([str(panda[name].dtype) for name in ("age", "sons", "good")], ["string", "Int64", "boolean"])
        self.assertEqual(list(panda.index), ["a", "b", "c"])
        self.assertEqual((panda.loc["c", "sons"], panda.loc["c", "parts"]), (rows[2]["sons"], rows[2]["parts"]))
        self.assertTrue(panda.loc["b", ["age", "sons", "finish_reason"]].isna().all())

        taken = self.client.run(OnlyStream(pyarrow.Table.from_pylist(ROWS)), prompt, **asked)
        self.assertIsInstance(taken, pyarrow.Table)
        self.assertEqual(taken.to_pylist(), rows)

    def test_a_row_that_fails_is_a_row_with_an_error(self):
        rows = [{"text": "tale " * 9000}, {"text": "Once upon a time"}]
        found = self.client.run(rows, "{text}", max_tokens=3)
        self.assertIsNone(found[0]["answer"])
        self.assertRegex(found[0]["error"], "^(invalid_request|prompt_too_long): .*context")
        self.assertEqual((found[1]["error"], found[1]["completion_tokens"]), (None, 3))
        cut = self.client.run([{}], "A king", schema=SCHEMA, max_tokens=2)[0]
        self.assertEqual((cut["age"], cut["finish_reason"], cut["completion_tokens"]), (None, "length", 2))
        self.assertIn("cut off at max_tokens", cut["error"])

    def test_answers_come_one_by_one_and_a_batch_is_found_again(self):
        table = polars.DataFrame({"key": ["x", "y"], "answer": ["taken", "taken"]})
        chat = [{"role": "system", "content": "Be {{brief}}."}, {"role": "user", "content": "{key:>3}"}]
        batch = self.client.submit(
            table, messages=chat, id="key", prefix="new_", name="tables", budget=5, deadline="2h", max_tokens=4, seed=1
        )
        seen = {result.id: result.answer for result in batch.results()}
        self.assertEqual(set(seen), {"x", "y"})
        again = ternfleet.Client(f"{base}/v1").resume(batch.id, table)
        self.assertEqual(again["new_answer"].to_list(), [seen["x"], seen["y"]])
        status = batch.status()
        self.assertEqual((status["ternfleet"]["name"], status["ternfleet"]["budget_usd_micro"]), ("tables", 5_000_000))
        late = datetime.datetime.now() + datetime.timedelta(hours=2, minutes=1)
        self.assertLess(status["ternfleet"]["deadline_ms"], late.timestamp() * 1000)
        with self.assertRaisesRegex(ternfleet.TableError, "a table of 2 rows; this one has 1"):
            self.client.resume(batch.id, table.head(1))
        heard = []
        run = self.client.run([{"n": n} for n in range(3)], lambda row: f"Tale {row['n']}", max_tokens=2, on_result=heard.append)
        self.assertEqual(sorted((one.row, one.answer) for one in heard), [(n, row["answer"]) for n, row in enumerate(run)])

    def test_the_examples_of_the_page_run_as_they_stand_there(self):
        page = (SOURCES.parent / "docs/python.md").read_text()
        examples = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
        self.assertEqual(len(examples), 4)
        os.environ["TERNFLEET_BASE_URL"] = base
        try:
            exec("\n".join(examples), {})
        finally:
            del os.environ["TERNFLEET_BASE_URL"]

    def test_a_refusal_is_the_servers_own_message(self):
        with self.assertRaisesRegex(ternfleet.ApiError, 'no worker serves the model "gpt"') as caught:
            self.client.run(ROWS, "x", model="gpt")
        self.assertEqual((caught.exception.status, caught.exception.code), (404, "model_not_found"))
        with self.assertRaisesRegex(ternfleet.ApiError, "limits cannot be met"):
            self.client.run(ROWS, "x", budget="0.000001")


class WithoutAServer(unittest.TestCase):
    client = ternfleet.Client("http://127.0.0.1:1")

    def test_what_does_not_fit_the_table_is_refused_before_anything_is_sent(self):
        for named, table, prompt, options in [
            ("no column 'whom'; it has: who, years", ROWS, "{whom}", {}),
            ("write {{ and }}", ROWS, '{"a": 1}', {}),
            ("cannot be read", ROWS, "{who", {}),
            ("already has a column 'answer'", [{"answer": 1}], "x", {}),
            ("rows 0 and 2 are both 'a'", [{"k": "a"}, {"k": "b"}, {"k": "a"}], "x", {"id": "k"}),
            ("must have 1 to 512 bytes", ROWS, "x", {"id": "who"}),
            ("not a dict", {"who": ["king"]}, "x", {}),
            (r"not a LazyFrame: call .collect\(\) first", polars.LazyFrame(ROWS), "x", {}),
            ("several columns 'a'", pandas.DataFrame([[1, 2]], columns=["a", "a"]), "x", {}),
            ("row 1 of the list is no dict", [{}, 3], "x", {}),
            ("either `prompt` or `messages`", ROWS, None, {}),
            ("`deadline` must be", ROWS, "x", {"deadline": "soon"}),
            ("`budget` must be", ROWS, "x", {"budget": -1}),
            ("`schema` must be", ROWS, "x", {"schema": "{}"}),
        ]:
            with self.subTest(named), self.assertRaisesRegex(ternfleet.TableError, named):
                self.client.run(table, prompt, **options)
        with self.assertRaisesRegex(TypeError, "'temprature'; known are: .*temperature"):
            self.client.run(ROWS, "x", temprature=1)
        with self.assertRaisesRegex(ternfleet.ConnectionLost, "start a fleet with `ternfleet up`"):
            self.client.run(ROWS, "x")

    def test_a_table_that_asks_for_nothing_needs_no_server(self):
        empty = self.client.run(pyarrow.table({"who": pyarrow.array([], pyarrow.string())}), "{who}", schema=SCHEMA)
        self.assertEqual(empty.column_names, ["who", *ADDED])
        self.assertEqual(self.client.run([{"who": None}], "{who}")[0]["error"], "`who` is null")
        with self.assertRaisesRegex(ternfleet.TableError, "has a request"):
            self.client.submit([], "x")

    def test_the_address_is_that_of_the_environment_of_the_folder_or_the_usual_one(self):
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                self.assertEqual(ternfleet.Client().base_url, "http://127.0.0.1:8080")
                os.mkdir("ternfleet-data")
                addresses = pathlib.Path("ternfleet-data/addresses.json")
                addresses.write_text(json.dumps({"nats": "", "http": "127.0.0.1:3", "pid": os.getpid()}))
                self.assertEqual(ternfleet.Client().base_url, "http://127.0.0.1:3")
                addresses.write_text(json.dumps({"nats": "", "http": "127.0.0.1:3", "pid": 2**22 + 1}))
                self.assertEqual(ternfleet.Client().base_url, "http://127.0.0.1:8080")
                os.environ["TERNFLEET_BASE_URL"] = "https://fleet.example/v1"
                self.assertEqual(ternfleet.Client().base_url, "https://fleet.example")
            finally:
                os.environ.pop("TERNFLEET_BASE_URL", None)
                os.chdir(before)

    def test_the_sources_are_of_the_oldest_python_that_the_wheel_asks_for(self):
        for path in (SOURCES / "ternfleet").glob("*.py"):
            ast.parse(path.read_text(), feature_version=(3, 8))

    def test_the_types_of_columns_follow_the_schema(self):
        from ternfleet._schema import Shape

        nested = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "additionalProperties": False}
        schema = {
            "$defs": {"one": nested, "loop": {"type": "array", "items": {"$ref": "#/$defs/loop"}}},
            "properties": {
                "a": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "b": {"$ref": "#/$defs/one"},
                "c": {"enum": ["x", 1]},
                "d": {"type": ["integer", "number"]},
                "e": {"const": True},
                "f": {"type": "object"},
            },
        }
        shape = Shape(schema)
        self.assertEqual([kind.name for _, kind in shape.columns], ["integer", "struct", "json", "number", "boolean", "json"])
        _, values = shape.read('{"a": 7, "b": {"x": 1}, "c": "x", "d": 2, "e": true, "f": {"y": [1]}}')
        self.assertEqual(values, [7, {"x": 1.0}, '"x"', 2.0, True, '{"y": [1]}'])
        for text in ('{"a": 9223372036854775808}', '{"a": 1e999}', '{"a": "7"}', "[]", '{"a": '):
            with self.subTest(text), self.assertRaises((ValueError, OverflowError)):
                shape.read(text)
        self.assertEqual(Shape({"$ref": "#/$defs/loop", **schema}).columns[0][0], "answer")


def line(row, text):
    body = {"choices": [{"text": text, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    return json.dumps({"custom_id": str(row), "response": {"body": body}, "error": None}).encode() + b"\n"


class Faulty(http.server.BaseHTTPRequestHandler):
    """A coordinator whose replies are scripted by path: each a list, of which the last stays."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self):
        server = self.server
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.asked.append((self.command, self.path, dict(self.headers)))
        replies = server.replies[f"{self.command} {self.path}"]
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        self.close_connection = True
        if reply is None:
            return  # The connection ends without an answer.
        status, content, *rest = reply
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if rest == ["chunk"]:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))  # And no last chunk.
            return
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", str(len(data) + (10 if rest == ["short"] else 0)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = reply


def state(status, answered=0, **own):
    own = {"state": status, "reason": None, **own}
    batch = {"id": "batch_1", "status": status, "request_counts": {"completed": answered, "failed": 0}, "ternfleet": own}
    return 200, {**batch, "output_file_id": "file-2" if status == "completed" else None, "error_file_id": None}


class AgainstFaults(unittest.TestCase):
    def setUp(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
        self.server.asked = []
        self.server.replies = {
            "POST /v1/files": [(200, {"id": "file-1"})],
            "POST /v1/batches": [state("validating")],
            "GET /v1/batches/batch_1": [state("in_progress")],
            "GET /v1/batches/batch_1/results": [(200, b"")],
            "GET /v1/files/file-2/content": [(200, line(0, "zero") + line(1, "one"))],
        }
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.client = ternfleet.Client(address, "secret", timeout=5)

    def script(self, path, *replies):
        self.server.replies[path] = list(replies)

    def test_a_lost_connection_is_waited_out_and_no_answer_comes_twice(self):
        refused = {"error": {"message": "no coordinator leads", "code": "unavailable", "param": None}}
        self.script("POST /v1/batches", (503, refused), state("validating"))
        self.script("GET /v1/batches/batch_1", None, (502, b"<html>"), state("in_progress", 1), state("completed", 2))
        self.script("GET /v1/batches/batch_1/results", (200, line(1, "one"), "chunk"), (200, line(1, "one")))
        whole = line(1, "one") + line(0, "zero")
        self.script("GET /v1/files/file-2/content", (200, whole[:70], "short"), (200, whole))
        heard = []
        with self.assertLogs("ternfleet", "WARNING") as said:
            found = self.client.run([{"a": 1}, {"a": 2}], "{a}", on_result=heard.append)
        self.assertEqual([row["answer"] for row in found], ["zero", "one"])
        self.assertEqual([result.row for result in heard], [1, 0])
        self.assertIn("batch_1 continues", said.output[0])
        keys = {headers["Idempotency-Key"] for _, path, headers in self.server.asked if path == "/v1/batches"}
        self.assertEqual(len(keys), 1)
        self.assertEqual({headers["Authorization"] for _, _, headers in self.server.asked}, {"Bearer secret"})

    def test_ctrl_c_leaves_the_batch_and_names_it(self):
        threading.Timer(0.3, _thread.interrupt_main).start()
        with self.assertRaisesRegex(ternfleet.Interrupted, r"client.resume\('batch_1', table\)") as caught:
            self.client.run([{}], "x")
        self.assertEqual(caught.exception.batch_id, "batch_1")
        self.assertIsInstance(caught.exception, KeyboardInterrupt)
        self.assertFalse([path for _, path, _ in self.server.asked if "cancel" in path])

    def test_a_batch_that_cannot_go_on_says_why(self):
        self.script("GET /v1/batches/batch_1", state("failed", reason="the input is gone"))
        with self.assertRaisesRegex(ternfleet.BatchFailed, "batch_1 failed: the input is gone"):
            self.client.run([{}], "x")
        status, paused = state("in_progress")
        paused["ternfleet"]["state"] = "paused_budget"
        self.script("GET /v1/batches/batch_1", (status, paused))
        with self.assertRaisesRegex(ternfleet.BudgetSpent, "budget is spent"):
            list(self.client.stream([{}], "x"))

    def test_a_connection_that_stays_lost_ends_the_wait_and_names_the_batch(self):
        self.script("GET /v1/batches/batch_1", None)
        client = ternfleet.Client(self.client.base_url, patience=0.1)
        with self.assertLogs("ternfleet"), self.assertRaisesRegex(ternfleet.ConnectionLost, "client.resume") as caught:
            client.run([{}], "x")
        self.assertEqual(caught.exception.batch_id, "batch_1")

    def test_a_redirect_does_not_carry_the_key_away(self):
        self.script("POST /v1/files", (307, b""))
        with self.assertRaises(ternfleet.ApiError) as caught:
            self.client.run([{}], "x")
        self.assertEqual(caught.exception.status, 307)


if __name__ == "__main__":
    if not unittest.main(exit=False, argv=[sys.argv[0], *sys.argv[1:]]).result.wasSuccessful():
        sys.exit(1)
    print("all rules hold")
