"""Runs the examples of docs/api.md as they stand there, against a running fleet: curl's as one shell script, Python's as one program.

    python api_examples.py http://127.0.0.1:PORT docs/api.md
"""

import pathlib
import re
import subprocess
import sys
import tempfile

base, document = sys.argv[1], pathlib.Path(sys.argv[2]).read_text()
assert "http://127.0.0.1:8080" in document


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", document, re.S | re.M)
    assert found, f"no example in {language}"
    return "\n".join(found).replace("http://127.0.0.1:8080", base)


with tempfile.TemporaryDirectory() as folder:
    shell = subprocess.run(["bash", "-euo", "pipefail", "-c", blocks("sh")], cwd=folder, capture_output=True, text=True, timeout=120)
    assert shell.returncode == 0, shell.stdout + shell.stderr
    assert shell.stdout.count('"custom_id"') >= 2 and "data: [DONE]" in shell.stdout, shell.stdout
    print("ok   the examples with curl")
    python = subprocess.run([sys.executable, "-c", blocks("python")], cwd=folder, capture_output=True, text=True, timeout=120)
    assert python.returncode == 0, python.stdout + python.stderr
    assert "millionths of a dollar" in python.stdout and "completed=8" in python.stdout, python.stdout
    print("ok   the examples in Python")
print("all rules hold")
