"""From a finished file back to something that can be trained on: f32 weights that round to the file's ternary ones.

A file holds only -1, 0, +1 and one scale a matrix. Training goes on from latent weights that give exactly those: zeros
lie evenly within 0.4 units of nothing, the others 0.6 units out and farther, their tail drawn so that the mean magnitude is
again the unit (absmean). No weight lies within 0.1 units of a threshold, so that noise alone does not turn it over.
"""

from pathlib import Path

import torch

import gguf
from model import Storyteller

INNER, OUTER = 0.4, 0.6


def latent(codes: torch.Tensor, unit: float, generator: torch.Generator) -> torch.Tensor:
    """codes: (M, K) of -1, 0, +1 -> f32 of that shape, whose absmean is `unit` and whose rounding is `codes`."""
    zero = codes == 0
    shape, share = codes.shape, zero.float().mean().item()
    inside = INNER * (2 * torch.rand(shape, generator=generator) - 1)
    tail = -torch.log1p(-torch.rand(shape, generator=generator))
    # Whatever the draw was, the tail is stretched until the mean is right.
    wanted = (1 - inside.abs()[zero].sum().item() / codes.numel()) / (1 - share) - OUTER
    assert wanted > 0, "a matrix almost without zeros has no such latent weights"
    tail *= wanted / tail[~zero].mean()
    return unit * torch.where(zero, inside, codes * (OUTER + tail))


def load_file(model: Storyteller, path: Path, seed: int) -> None:
    """Sets every weight of `model` from the GGUF file at `path`."""
    file, generator = gguf.Reader(path), torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        name = name if name.endswith("weight") else f"{name}.weight"
        found = file.tensor(name.replace("layers.", "blk."))
        if isinstance(found, tuple):
            codes = torch.from_numpy(found[0].astype("float32"))
            p.data = latent(codes, float(found[1]), generator)
        else:
            p.data = torch.from_numpy(found.copy())
