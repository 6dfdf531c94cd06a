"""Trains the storyteller, or with `--plain` the same network without quantisation.

The first steps run without quantisation, the others with it: a ternary network learns better from such a start than
from random weights (Nielsen et al., 2025, arXiv:2502.11895). What stands at the change is kept as change.pt, from which
`--start` continues a comparison without repeating those steps.

Batches, initial weights and learning rates follow from the step number and the seed alone, so a run that was
stopped goes on from its last checkpoint as if nothing had happened; nothing looks at the clock except to report
speed. Writes to out/<name>/: checkpoint.pt while running, change.pt, final.pt at the end, and curve.csv.
"""

import argparse
import csv
import os
import time
from pathlib import Path

import torch

from data import Sequences, load
from evaluate import bits_per_byte
from latents import load_file
from model import Shape, Storyteller
from optim import make_optimisers

HERE = Path(__file__).parent
TOKENS_A_STEP = 4096
SHORT, LONG = 256, 512


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--name", default="ternary", help="folder under out/")
    p.add_argument("--steps", type=int, default=1600)
    p.add_argument("--change", type=int, default=400, help="the step from which on the network is quantised")
    p.add_argument("--plain", action="store_true", help="never quantise")
    p.add_argument("--start", type=Path, help="a checkpoint to begin from when this run has none of its own")
    p.add_argument("--start-file", type=Path, help="a GGUF file whose weights to begin from, with fresh optimisers")
    p.add_argument("--long", type=int, default=200, help="steps, at the end, on long sequences")
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--hold", type=int, default=600, help="the step from which on the learning rate falls")
    p.add_argument("--muon-lr", type=float, default=4e-3)
    p.add_argument("--adam-lr", type=float, default=3e-3)
    p.add_argument("--weight-decay", type=float, default=0.1, help="of the matrices, while the learning rate is full")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--save-every", type=int, default=250)
    p.add_argument("--evaluate-every", type=int, default=400)
    return p.parse_args()


def learning_rate(step: int, a: argparse.Namespace) -> float:
    """A share of the peak: linear warm-up, a plateau, then a straight line to zero."""
    return min((step + 1) / a.warmup, 1.0, (a.steps - step) / (a.steps - a.hold))


def save(path: Path, **content) -> None:
    """Whole or not at all, so that a kill while writing costs nothing."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def main() -> None:
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    out = HERE / "out" / a.name
    out.mkdir(parents=True, exist_ok=True)
    corpus = load(HERE / "out" / "tokenizer.json")

    model = Storyteller(Shape())
    optimisers = make_optimisers(model, a.muon_lr, a.adam_lr)
    peaks = [a.muon_lr, a.adam_lr]
    first, rows = 0, []
    own = out / "checkpoint.pt"
    if own.exists() or a.start:
        saved = torch.load(own if own.exists() else a.start, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers, saved["optimisers"]):
            optimiser.load_state_dict(state)
        first, rows = saved["step"], saved["rows"]
    elif a.start_file:
        load_file(model, a.start_file, a.seed)

    switch = a.steps - a.long
    compiled = torch.compile(model.loss, dynamic=False)
    sequences = {t: Sequences(corpus, t, TOKENS_A_STEP // t, a.seed) for t in (SHORT, LONG)}
    recent, since, tick = 0.0, 0, time.monotonic()
    for step in range(first, a.steps):
        model.mode.quantise = step >= a.change and not a.plain
        length, number = (SHORT, step) if step < switch else (LONG, step - switch)
        batch = torch.from_numpy(sequences[length][number])
        loss = compiled(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, peak in zip(optimisers, peaks):
            for group in optimiser.param_groups:
                group["lr"] = peak * learning_rate(step, a)
                if "momentum" in group:
                    group["weight_decay"] = a.weight_decay if step < a.hold else 0.0
            optimiser.step()
            optimiser.zero_grad()
        recent, since, done = recent + loss.item(), since + 1, step + 1

        if done % 50 == 0 or done == a.steps:
            speed = since * TOKENS_A_STEP / (time.monotonic() - tick)
            held_out = ""
            if done % a.evaluate_every == 0 or done == a.steps:
                held_out = round(bits_per_byte(model, corpus), 4)
            rows.append([done, done * TOKENS_A_STEP, round(recent / since, 4), held_out])
            print(f"step {done}/{a.steps}  loss {recent / since:.4f}  {speed:.0f} tok/s  held-out {held_out}", flush=True)
            with open(out / "curve.csv", "w", newline="") as f:
                csv.writer(f).writerows([["step", "tokens", "train_nats_per_token", "held_out_bits_per_byte"], *rows])
            recent, since, tick = 0.0, 0, time.monotonic()
        if done < a.steps and (done == a.change or done % a.save_every == 0):
            states = [o.state_dict() for o in optimisers]
            to = out / "change.pt" if done == a.change else own
            save(to, model=model.state_dict(), optimisers=states, step=done, rows=rows)

    save(out / "final.pt", model=model.state_dict(), shape=model.shape.as_dict(), quantise=model.mode.quantise)
    own.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
