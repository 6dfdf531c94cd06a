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
# The first model, and from its weights the second: a new warm-up, and a longer way down.
test -f out/first.gguf || { "$python" export.py ternary; cp ../storyteller.gguf out/first.gguf; }
test -f out/longer/final.pt || "$python" train.py --name longer --start-file out/first.gguf --threads "${THREADS:-2}" \
  --change 0 --steps 700 --warmup 30 --hold 200 --long 150 --muon-lr 2.5e-3 --adam-lr 1.5e-3 --seed 2
"$python" evaluate.py longer
"$python" plot.py
"$python" export.py longer
"$python" verify.py longer
