"""The terms of FADE's loss (Thakral et al., CVPR 2025), as its authors run them (`code_…`) and as they print them.

Predictions are (n, 4, h, w): of the target, of each of K neighbours (K, n, 4, h, w), and of the target in each of J
sentences (J, n, 4, h, w).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def row_distance(a: Tensor, b: Tensor) -> Tensor:
    """The authors' distance of two predictions (n, 4, h, w): the L2 norm of each image row, then the mean.

    1e-6 is added to every difference first, as torch's pairwise_distance does.
    """
    return (a - b + 1e-6).norm(dim=-1).mean()


def code_erase_loss(target: Tensor, neighbours: Tensor, sentences: Tensor, margin: float) -> Tensor:
    """L_er as the authors run it: row distances, summed. (n, 4, h, w), (K, n, 4, h, w), (J, n, 4, h, w)."""
    towards = torch.stack([row_distance(target, neighbour) for neighbour in neighbours]).sum()
    away = torch.stack([row_distance(target, sentence) for sentence in sentences]).sum()
    return F.relu(towards - away + margin)


def paper_erase_loss(target: Tensor, neighbours: Tensor, sentences: Tensor, margin: float) -> Tensor:
    """L_er as printed: squared distances, averaged over the set, the noises and the elements."""
    towards = (target - neighbours).square().mean()
    away = (target - sentences).square().mean()
    return F.relu(towards - away + margin)


def code_adjacent_loss(predicted: Tensor, original: Tensor) -> Tensor:
    """L_adj as the authors run it: the neighbours' mean squared errors, summed. Both (K, n, 4, h, w)."""
    return len(predicted) * F.mse_loss(predicted, original)


def paper_adjacent_loss(predicted: Tensor, original: Tensor) -> Tensor:
    """L_adj as printed: the mean over neighbours. Both (K, n, 4, h, w)."""
    return F.mse_loss(predicted, original)


LOSSES = {"code": (code_erase_loss, code_adjacent_loss), "paper": (paper_erase_loss, paper_adjacent_loss)}
"""L_er and L_adj by FADE's `mode`."""
