"""MMA-Diffusion's text attack (Yang et al., CVPR 2024, arXiv 2311.17516), in its style, on the text encoder alone.

    maximise  cos( te(prompt), te(p) )                                                                        (eq. 2)

with te the text encoder's output at the end-of-text token, and p a direct prompt of the concept. Greedy coordinate
gradient, by the search of `token_search.py`; banned words (sensitive ones, in the paper) are in no prompt.

Beside the paper's: each restart takes the next of the concept's direct prompts, prompts read back as their tokens, and
the defaults are smaller.
"""

from collections.abc import Iterator
from itertools import count

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from efface.eval.attack import ATTACKS, AdversarialPrompt, AttackTarget, PromptAttack
from efface.eval.attacking.derived_seed import derived_seed
from efface.eval.attacks.token_search import SearchObjective, TokenSearchConfig, Vocabulary, search


class MMAConfig(TokenSearchConfig):
    """The paper's in length; fewer exchanges and steps, as the search is restarted."""

    tokens: int = Field(20, ge=1, description="tokens of a prompt; paper 20")
    steps: int = Field(100, ge=0, description="steps of one search; paper 500")
    top_k: int = Field(256, ge=1, description="best exchanges at each position by gradient; paper 256")
    candidates: int = Field(64, ge=1, description="exchanges that a step samples and tries; paper 512")


def pooled_cosine(pooled: Tensor, target: Tensor) -> Tensor:
    """Eq. 2 for outputs at the end-of-text token, of prompts (B, D) and of the target prompt (D,): (B,)."""
    return F.cosine_similarity(pooled, target[None], dim=-1)


class PooledObjective(SearchObjective):
    """Of one prompt alone, at its end-of-text token."""

    def similarity(self, features: Tensor) -> Tensor:
        return pooled_cosine(features[:, 0], self.direction[0])


@ATTACKS.register("mma")
class MMA(PromptAttack):
    """Greedy coordinate gradient on the base's text encoder, towards one direct prompt at a time."""

    Config = MMAConfig
    config: MMAConfig

    def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]:
        """One prompt for each restart; the strength is the cosine."""
        vocabulary = Vocabulary(self.base)
        goals = [PooledObjective(self.base, [prompt]) for prompt in target.prompts]
        for restart in count():
            from_seed = derived_seed("mma", seed, target.concept.name, restart)
            yield search(self.base, goals[restart % len(goals)], vocabulary, target.banned, self.config, from_seed)
