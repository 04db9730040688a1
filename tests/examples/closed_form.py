"""A closed form in a package of its own: the smallest change by which a concept's last token has its anchor's values.

    W <- W + W (g - c) c^T / (c^T c)

for every to_k and to_v of the text cross-attention; c and g, (d,), are the last tokens of the concept's and its
anchor's phrase after the text encoder. So W c becomes W g, and W k stays for every k at a right angle to c.
"""

import torch

from efface.models.parameter_groups import select
from efface.models.text.text_encoding import encode_prompts, last_subject_token
from efface.train.method import ClosedFormMethod, MethodConfig, register


class RankOneConfig(MethodConfig):
    """No settings."""


@register("rank-one")
class RankOne(ClosedFormMethod):
    """Gives a concept's last token the keys and values of its anchor's."""

    Config = RankOneConfig
    group = "kv-xattn"

    def solve(self, task):
        (concept,) = task.concepts
        prompts = [concept.phrase, task.concept_set.anchor_phrase(concept)]
        encoded = encode_prompts(task.base, prompts).encoder_hidden_states.double()
        c, g = encoded[torch.arange(2), last_subject_token(task.base, prompts)]
        change = torch.outer(g - c, c) / c.dot(c)
        weights = {name: weight.double() for name, weight in select(task.base, self.group).items()}
        return {name: (weight + weight @ change).float() for name, weight in weights.items()}
