"""Training only the entries of the weights that matter for what is to be forgotten.

    gradient     the largest |sum of gradients|: the saliency of SalUn (Fan et al., ICLR 2024, arXiv 2310.12508, eq. 4)
    importance   the largest |weight x sum of gradients|: selective fine-tuning, as CUIG uses it (arXiv 2511.07970)

The sum is over some batches of the method's own selection loss, before the first step: SalUn's is the forget loss of
its paper, any other method's is the loss it trains with. All other entries keep their bits.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from efface.errors import JobFailure
from efface.models.network import Network
from efface.train.collectives import all_gather
from efface.train.method import GradientMethod


def selected_entries(
    method: GradientMethod, student: Network, trained: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """A mask of each trained tensor, bool: the same in all processes of a group."""
    values = list(trained.values())
    sums = [torch.zeros_like(value) for value in values]
    for index in range(method.config.select_batches):
        loss = method.selection_loss(student, index)
        gradients = torch.autograd.grad(loss, values, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient
    if method.config.select == "importance":
        sums = [total * value.detach() for total, value in zip(sums, values, strict=True)]
    chosen = top_share([total.abs() for total in sums], method.config.select_share)
    if not any(bool(mask.any()) for mask in chosen):
        raise JobFailure(f"method '{method.name}': select finds no weight with a gradient to train")
    # sums in another order may differ in their last bit from process to process, so the first one's counts
    first = all_gather([mask.cpu() for mask in chosen])[0]
    return {name: mask.to(value.device) for (name, value), mask in zip(trained.items(), first, strict=True)}


def top_share(scores: list[Tensor], share: float) -> list[Tensor]:
    """Masks of the largest `share` of all entries of all tensors together; never of entries that are 0."""
    flat = torch.cat([score.flatten() for score in scores])
    count = min(len(flat), max(1, int(share * len(flat))))
    threshold = flat.kthvalue(len(flat) - count + 1).values
    return [(score >= threshold) & (score > 0) for score in scores]


def keep_selected(value: Tensor, start: Tensor, mask: Tensor) -> None:
    """Give all entries outside of the mask the bits they started with, in place."""
    value.copy_(torch.where(mask, value, start))
