#!/bin/sh
# Everything from the corpus to the exported file. Stop it at any time; called again, it goes on from the last
# checkpoint. `PYTHON=... THREADS=1 ./run.sh` chooses the interpreter and the number of threads.
set -e
python=${PYTHON:-python}
cd "$(dirname "$0")"
test -f out/ternary/final.pt || "$python" train.py --name ternary --threads "${THREADS:-2}"
test -f out/plain/final.pt || "$python" train.py --name plain --plain --start out/ternary/change.pt --threads "${THREADS:-2}"
"$python" evaluate.py ternary
"$python" evaluate.py plain
"$python" plot.py
"$python" export.py ternary
"$python" verify.py ternary
