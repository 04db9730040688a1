"""Searching prompts by their tokens: projections, and the moves of gradient and genetic searches.

Pure functions of tensors; `generator` is one of the CPU, so that a search is a function of its seed on any device.
Attacks search with them, and so may methods that train against an adversary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def project_to_simplex(weights: Tensor) -> Tensor:
    """The nearest point, row by row, of the simplex: no weight below 0, all together 1 (Duchi et al., ICML 2008).

    weights: (…, V).
    """
    ordered = weights.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    ranks = torch.arange(1, weights.shape[-1] + 1, device=weights.device, dtype=weights.dtype)
    count = (ordered * ranks > excess).sum(-1, keepdim=True)
    return (weights - excess.gather(-1, count - 1) / count).clamp(min=0)


def sample_tokens(weights: Tensor, generator: torch.Generator) -> Tensor:
    """A token of each position, drawn by its weights on the simplex, (n, V): one-hot, with the weights' gradient."""
    drawn = torch.multinomial(weights.detach().float().cpu(), 1, generator=generator)[:, 0].to(weights.device)
    one_hot = F.one_hot(drawn, weights.shape[-1]).to(weights.dtype)
    return one_hot + weights - weights.detach()


def nearest_tokens(embeddings: Tensor, table: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The tokens whose embeddings have the greatest cosine with each of (n, D): (n,), of a table (V, D).

    allowed: bool (V,), at least one.
    """
    similarity = F.normalize(embeddings, dim=-1) @ F.normalize(table, dim=-1).T
    if allowed is not None:
        similarity = similarity.masked_fill(~allowed.to(similarity.device), -torch.inf)
    return similarity.argmax(-1)


def straight_through(embeddings: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
    """The tokens' own embeddings, with the gradient of the soft ones (PEZ, Wen et al., NeurIPS 2023). All (n, D)."""
    return table[tokens] + embeddings - embeddings.detach()


def best_exchanges(gains: Tensor, tokens: Tensor, allowed: Tensor, top_k: int) -> Tensor:
    """At each position the allowed tokens of the highest gain (n, V), other than the one that stands there: (n, k)."""
    gains = gains.masked_fill(~allowed, -torch.inf).clone()
    gains[torch.arange(len(tokens)), tokens] = -torch.inf
    return gains.topk(min(top_k, int(allowed.sum()) - 1), dim=1).indices


def exchange_one(tokens: Tensor, choices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Different prompts with one token of `tokens` (n,) exchanged for one of its position's `choices` (n, k)."""
    positions, ranks = choices.shape
    sampled = torch.randperm(positions * ranks, generator=generator)[:count]
    tried = tokens.repeat(len(sampled), 1)
    tried[torch.arange(len(sampled)), sampled // ranks] = choices.flatten()[sampled]
    return tried


def cross_over(first: Tensor, second: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Children of two parents each, (P, n): with this rate the first one's beginning and the second one's end."""
    count, length = first.shape
    cut = torch.randint(1, max(2, length), (count, 1), generator=generator)
    crossed = torch.where(torch.arange(length) < cut, first, second)
    return torch.where(torch.rand(count, 1, generator=generator) < rate, crossed, first)


def mutate(population: Tensor, rate: float, pool: Tensor, generator: torch.Generator) -> Tensor:
    """The population (P, n), where with this rate a prompt has one token exchanged for one of the pool (m,)."""
    count, length = population.shape
    positions = torch.randint(length, (count, 1), generator=generator)
    others = pool[torch.randint(len(pool), (count, 1), generator=generator)]
    changed = population.scatter(1, positions, others)
    return torch.where(torch.rand(count, 1, generator=generator) < rate, changed, population)


def next_generation(
    population: Tensor,
    fitness: Tensor,
    crossover: float,
    mutation: float,
    pool: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The fitter half of a population (P, n) as it is, and as many children of parents drawn from it."""
    half = max(1, len(population) // 2)
    elite = population[fitness.topk(half).indices.cpu()]
    parents = torch.randint(half, (2, len(population) - half), generator=generator)
    children = cross_over(elite[parents[0]], elite[parents[1]], crossover, generator)
    return torch.cat([elite, mutate(children, mutation, pool, generator)])
