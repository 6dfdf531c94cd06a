"""`ternfleet top` on a terminal: it draws, follows a new size, ends on q and on Ctrl-C, and gives the terminal back.
`ternfleet launch` on a terminal: Ctrl-C asks whether to detach, to end or to go on.

    python terminal_flow.py TERNFLEET nats://127.0.0.1:PORT
"""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

program, nats = sys.argv[1:]


def rule(text, holds):
    print(("ok   " if holds else "FAIL ") + text, flush=True)
    if not holds:
        sys.exit(1)


def size(terminal, rows, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Terminal:
    """A running command and the terminal that it believes to be a person's."""

    def __init__(self, *arguments, **environment):
        self.terminal, theirs = pty.openpty()
        size(self.terminal, 30, 120)
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen([program, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
                                        env={**os.environ, "TERM": "xterm-256color", **environment}, start_new_session=True)
        self.theirs = theirs
        self.drawn = b""

    def sees(self, text, seconds=20):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if text in self.drawn:
                return True
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.drawn += os.read(self.terminal, 65536)
        return False

    def press(self, keys):
        os.write(self.terminal, keys)

    def ends(self, seconds=10):
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.drawn += os.read(self.terminal, 65536)
        while select.select([self.terminal], [], [], 0.1)[0]:
            self.drawn += os.read(self.terminal, 65536)
        return self.process.poll()

    def is_given_back(self):
        return b"\x1b[?1049l" in self.drawn and termios.tcgetattr(self.theirs) == self.before


def Top(**environment):
    return Terminal("top", "--nats", nats, **environment)


top = Top()
# Single words: between them stand moves of the cursor wherever a cell was blank already.
rule("it draws pods, batches and money", top.sees(b"tok/s") and top.sees(b"live") and top.sees(b"batches"))
rule("in colours", b"\x1b[38;5;" in top.drawn or b"\x1b[3" in top.drawn)
top.drawn = b""
size(top.terminal, 50, 160)
os.kill(top.process.pid, signal.SIGWINCH)
rule("it draws again at a new size", top.sees(b"quits"))
top.press(b"q")
rule("q ends it with exit code 0", top.ends() == 0)
rule("the terminal is given back as it was", top.is_given_back())

top = Top(NO_COLOR="1")
rule("it starts again", top.sees(b"queued"))
rule("NO_COLOR is obeyed", not any(code in top.drawn for code in (b"\x1b[38;5;", b"\x1b[31m", b"\x1b[32m", b"\x1b[36m")))
top.press(b"\x03")
rule("Ctrl-C ends it with exit code 0", top.ends() == 0 and top.is_given_back())

top = Top()
top.sees(b"queued")
top.process.send_signal(signal.SIGTERM)
rule("SIGTERM gives the terminal back too", top.ends() == 0 and top.is_given_back())

plain = subprocess.run([program, "top", "--nats", nats], capture_output=True, text=True, timeout=30)
rule("without a terminal it prints once", plain.returncode == 0 and "tok/s" in plain.stdout and "\x1b" not in plain.stdout)
told = json.loads(subprocess.run([program, "top", "--json", "--nats", nats], capture_output=True, text=True, timeout=30).stdout)
rule("--json is one object", told["totals"]["pods_live"] == len(told["pods"]) == 1 and told["batches"] == [])

folder = tempfile.mkdtemp()
own = {"TERNFLEET_STATE_DIR": os.path.join(folder, "fleets")}
prompts = os.path.join(folder, "prompts.jsonl")
with open(prompts, "w") as file:
    file.writelines(json.dumps({"prompt": f"Tale {n}.", "max_tokens": 200}) + "\n" for n in range(400))


def fleets():
    listed = subprocess.run([program, "fleets", "--all", "--json"], env={**os.environ, **own}, capture_output=True, text=True, timeout=30)
    return json.loads(listed.stdout)


def interrupt(launch, answer):
    launch.drawn = b""
    launch.process.send_signal(signal.SIGINT)
    asked = launch.sees(b"[d]etach and let it run, [e]nd it and return all pods, or [c]ontinue? ")
    launch.drawn = b""
    launch.press(answer)
    return asked


launch = Terminal("launch", prompts, "--head", nats, "--yes", "--anyway", "--out", os.path.join(folder, "out.jsonl"), **own)
until = time.monotonic() + 60
while not any(fleet["batch"] for fleet in fleets()) and launch.process.poll() is None and time.monotonic() < until:
    time.sleep(0.2)
name = fleets()[0]["name"]
rule("Ctrl-C asks", interrupt(launch, b"c\n"))
rule("after c it asks again the next time", interrupt(launch, b"d\n"))
rule("a detached launch says how to follow it again", launch.ends(30) == 130 and f"launch --resume {name}".encode() in launch.drawn)
rule("and its fleet keeps running", fleets()[0]["ended_at"] is None)
launch = Terminal("launch", "--resume", name, **own)
launch.sees(b" ", 30)
time.sleep(0.5)
rule("Ctrl-C asks after --resume, too", interrupt(launch, b"e\n"))
rule("a launch that is ended returns all pods", launch.ends(60) == 130 and fleets()[0]["ended_at"] is not None)
print("all rules hold")
