"""Bits per byte on the held-out slices, and samples, from a finished network.

A slice is read in windows of 512 tokens that overlap by half. Each window opens with BOS; only tokens that no
earlier window has scored count, so but for a slice's beginning each is predicted from at least 255 others. The
sum of their costs in bits, over the bytes of the held-out text, is the figure. No token is left out.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data import EOS, EOT, Corpus, load
from model import Shape, Storyteller

HERE = Path(__file__).parent
WINDOW = 512


def windows(ids: np.ndarray, bos: int):
    """(inputs, targets) pairs of WINDOW tokens; a target of -100 is not scored. The tail is padded."""
    begin, scored = 0, 0
    while scored < len(ids):
        piece = ids[begin : begin + WINDOW]
        targets = np.full(WINDOW, -100, dtype=np.int64)
        targets[scored - begin : len(piece)] = piece[scored - begin :]
        inputs = np.full(WINDOW, bos, dtype=np.int64)
        inputs[1 : len(piece) + 1] = piece[: WINDOW - 1]
        yield inputs, targets
        scored = begin + len(piece)
        begin = max(0, scored - WINDOW // 2)


@torch.no_grad()
def bits_per_byte(model: Storyteller, corpus: Corpus) -> float:
    pairs = [pair for ids in corpus.held_out for pair in windows(ids, corpus.bos)]
    nats = 0.0
    for i in range(0, len(pairs), 8):
        inputs, targets = (torch.from_numpy(np.stack(x)) for x in zip(*pairs[i : i + 8]))
        nats += F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten(), reduction="sum").item()
    return nats / math.log(2) / corpus.held_out_bytes


@torch.no_grad()
def sample(model: Storyteller, corpus: Corpus, prompt: str, tokens: int, seed: int, temperature=0.7, top_p=0.9) -> str:
    """Continues the prompt; the whole text is computed again at each step, which is slow and simple."""
    generator = torch.Generator().manual_seed(seed)
    ids = [corpus.bos, *corpus.tokenizer.encode(prompt).ids]
    stop = {corpus.tokenizer.token_to_id(t) for t in (EOS, EOT)}
    given = len(ids)
    while len(ids) < given + tokens:
        p = (model(torch.tensor([ids[-WINDOW:]]))[0, -1].float() / temperature).softmax(0)
        p, order = p.sort(descending=True)
        p[p.cumsum(0) - p > top_p] = 0
        ids.append(order[torch.multinomial(p, 1, generator=generator)].item())
        if ids[-1] in stop:
            break
    return corpus.tokenizer.decode(ids, skip_special_tokens=False)


def load_model(path: Path) -> Storyteller:
    """A finished network, computing in f32."""
    saved = torch.load(path, weights_only=True)
    model = Storyteller(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    model.mode.quantise, model.mode.dtype = saved["quantise"], torch.float32
    return model


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("name", help="folder under out/")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prompt", action="append", default=[])
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    corpus = load(HERE / "out" / "tokenizer.json")
    model = load_model(HERE / "out" / a.name / "final.pt")
    print(f"held-out bits per byte: {bits_per_byte(model, corpus):.4f}")
    for prompt in a.prompt or ["Once upon a time", "The future of artificial intelligence is", "The capital of France is"]:
        print("---", sample(model, corpus, prompt, 120, seed=1), sep="\n")


if __name__ == "__main__":
    main()
