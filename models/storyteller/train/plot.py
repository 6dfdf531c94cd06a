"""Draws out/*/curve.csv into curves.png beside this file, and keeps the CSV files here under the runs' names."""

import csv
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
# Colour, and how many tokens its starting weights had seen.
RUNS = {"ternary": ("tab:blue", 0), "plain": ("tab:orange", 0), "longer": ("tab:green", 1600 * 4096)}


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, (colour, seen) in RUNS.items():
        source = HERE / "out" / name / "curve.csv"
        if source.exists():
            shutil.copy(source, HERE / f"curve-{name}.csv")
        with open(HERE / f"curve-{name}.csv") as f:
            rows = list(csv.DictReader(f))
        left.plot([(seen + int(r["tokens"])) / 1e6 for r in rows], [float(r["train_nats_per_token"]) for r in rows], colour, label=name)
        scored = [r for r in rows if r["held_out_bits_per_byte"]]
        x = [(seen + int(r["tokens"])) / 1e6 for r in scored]
        right.plot(x, [float(r["held_out_bits_per_byte"]) for r in scored], colour, marker="o", label=name)
    left.set(title="training loss, nats a token", xlabel="million tokens", ylim=(3.2, 6.5))
    right.set(title="held-out bits per byte", xlabel="million tokens")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
