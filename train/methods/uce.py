"""UCE: Unified Concept Editing in Diffusion Models (Gandikota et al., WACV 2024, arXiv 2308.14761).

    W = ( ridge W0 + sum_E s_e W0 c*_i c_i^T + sum_P s_p W0 c_j c_j^T )
        ( ridge I  + sum_E s_e c_i c_i^T     + sum_P s_p c_j c_j^T )^-1                              (eq. 7)

for every to_k and to_v of the text cross-attention. c_i are embeddings of the concepts to forget (E), c*_i of
the guide each is mapped to, c_j of what is preserved (P). Nothing is trained and no image is made. All values
are W0 times another embedding, so one (d, d) map of the embeddings serves every layer: W = W0 T.

The authors' two implementations differ in the tokens that give the c's:

- `last-subject` (the newer one): the last token of the prompt's own words;
- `all` (the older one): from there to the end of the text window, concept and guide aligned at their last
  words; of preserved prompts all 77 tokens, and the empty prompt is always preserved.

The older one has two values for a concept (`technique`): the guide's, `replace`, or `tensor`, the guide's without
their part along the concept's own, v = W0 c* - <u, W0 c*> u with u = W0 c / ||W0 c|| over all tokens of the edit.
That is W0 (c* - a c) with a number a for each layer, so there is a map for each layer then.

With `debias` nothing is erased: a concept keeps its own values and is given some of each attribute's
(`train/data/debiasing.py`), so that its images show one attribute no more often than another.

Several concepts (`multi`) are one solve over the sum of their statistics, and so are all requests of a chain
(`continual`) so far, from the unedited base.
"""

import warnings
from itertools import chain
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from efface.models.parameter_groups import select
from efface.train.closed_form import Statistics, key_statistics, ridge_solve
from efface.train.composed_method import in_place
from efface.train.data.concept_keys import EditConfig, Encoded, aligned, edited_prompts, edits, encode, preserved
from efface.train.data.debiasing import Debiasing, find_amounts, load_classifier, shares_of_images, with_attributes
from efface.train.method import ClosedFormMethod, UnlearningTask, register


class UCEConfig(EditConfig):
    tokens: Literal["last-subject", "all"] = Field(
        "last-subject", description="token positions edited: the authors' newer code, or their older one"
    )
    technique: Literal["replace", "tensor"] = Field(
        "replace",
        description="values a concept is given: its guide's, or these without their part along the concept's own "
        "(authors' older code)",
    )
    ridge: float = Field(0.5, gt=0, description="lambda of eq. 7, the price of change; authors: 0.5")
    erase_scale: float = Field(1.0, gt=0, description="s_e of eq. 7; authors: 1")
    preserve_scale: float | None = Field(
        1.0,
        ge=0,
        description="s_p of eq. 7; authors' newer code: 1; the older: null, max(0.1, 1/n) of n",
    )
    debias: Debiasing | None = Field(
        None, description="attributes that images of the concepts should show evenly, in place of erasing them"
    )

    @model_validator(mode="after")
    def _debiasing_has_values_of_its_own(self) -> "UCEConfig":
        if self.debias and self.technique == "tensor":
            raise ValueError("technique: tensor erases, should not be with debias, which does not")
        return self

    def models(self) -> dict[str, str]:
        return {"classifier": self.debias.classifier} if self.debias and not self.debias.amounts else {}


@register("uce")
class UCE(ClosedFormMethod):
    """Cross-attention keys and values of a concept made those of another, in closed form and in seconds."""

    Config = UCEConfig
    config: UCEConfig
    strategies = frozenset({"single", "multi", "continual"})
    version = 2

    @property
    def group(self) -> str:
        return "kv-xattn"

    def solve(self, task: UnlearningTask) -> dict[str, Tensor]:
        if self.config.debias:
            return self.debiased(task, self.config.debias)
        edits, preserved = self.embedded(task, self.encoded(task))
        if self.config.technique == "replace":
            return self.replaced(task, edits, preserved)
        weights, solved = select(task.base, self.group), {}
        for name, weight in weights.items():
            old = weight.double()
            rejected = [(keys, guides - along(old, keys, guides) * keys) for keys, guides in edits]
            solved[name] = (old @ self.transform(self.sums(rejected, preserved))).float()
        return solved

    def replaced(
        self, task: UnlearningTask, edits: list[tuple[Tensor, Tensor]], preserved: list[Tensor]
    ) -> dict[str, Tensor]:
        """The weights that give keys the values of their guides, (n, d) each, and preserved keys their own."""
        transform = self.transform(self.sums(edits, preserved))
        weights = select(task.base, self.group)
        return {name: (weight.double() @ transform).float() for name, weight in weights.items()}

    def debiased(self, task: UnlearningTask, debias: Debiasing) -> dict[str, Tensor]:
        """The weights that give each concept's keys values of the attributes too, by amounts given or found."""
        names = [concept.name for concept in task.concepts]
        prompts = [edited_prompts(self.config, concept) for concept in task.concepts]
        kept = self.preserved(task)
        texts = [*chain.from_iterable(prompts), *debias.attributes, *kept]
        encoded = encode(task.base, texts, self.config.empty_prompt)
        attributes = [encoded[attribute] for attribute in debias.attributes]
        held = self.held([encoded[prompt] for prompt in kept])

        def edited(amounts: Tensor) -> dict[str, Tensor]:
            pairs = [
                with_attributes(encoded[prompt], attributes, own, self.config.tokens)
                for of_concept, own in zip(prompts, amounts, strict=True)
                for prompt in of_concept
            ]
            return self.replaced(task, pairs, held)

        if debias.amounts:
            return edited(debias.amounts_of(names))
        classify = load_classifier(debias.classifier, task.base.device)

        def measure(amounts: Tensor, number: int) -> Tensor:
            with in_place(task, edited(amounts)):
                return shares_of_images(task.base, prompts, debias, classify, number)

        amounts, shares = find_amounts(measure, len(names), debias)
        self.findings = {
            "amounts": dict(zip(names, amounts.tolist(), strict=True)),
            "shares": dict(zip(names, shares.tolist(), strict=True)),
        }
        if (debias.wanted - shares).abs().max() >= debias.tolerance:
            still = f"after {debias.rounds} rounds the shares of attributes are still off"
            warnings.warn(f"debias: {still}: {self.findings['shares']}", stacklevel=2)
        return edited(amounts)

    def transform(self, statistics: Statistics) -> Tensor:
        """The (d, d) map T of embeddings in W = W0 T."""
        identity = torch.eye(len(statistics.key_key), device=statistics.key_key.device)
        return ridge_solve(identity, statistics, self.config.ridge)

    def sums(self, edits: list[tuple[Tensor, Tensor]], preserved: list[Tensor]) -> Statistics:
        """The statistics of keys with their values, (n, d) each, and of preserved keys; values are embeddings too."""
        preserve_scale = self.config.preserve_scale
        if preserve_scale is None:
            preserve_scale = max(0.1, 1 / max(1, len(preserved)))
        parts = [key_statistics(keys, values, self.config.erase_scale) for keys, values in edits]
        parts += [key_statistics(keys, keys, preserve_scale) for keys in preserved]
        return sum(parts[1:], start=parts[0])

    def encoded(self, task: UnlearningTask, *more: str) -> dict[str, Encoded]:
        """All edited and preserved prompts, the guides and `more` after the text encoder, by their texts."""
        texts = [*(prompt for pair in self.edits(task) for prompt in pair), *self.preserved(task), *more]
        return encode(task.base, texts, self.config.empty_prompt)

    def embedded(
        self, task: UnlearningTask, encoded: dict[str, Encoded]
    ) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Keys and guides, (n, d) each, of every edit, and the keys of every preserved prompt."""
        pairs = [(encoded[prompt], encoded[guide]) for prompt, guide in self.edits(task)]
        return (
            [aligned(prompt, guide, self.config.tokens) for prompt, guide in pairs],
            self.held([encoded[prompt] for prompt in self.preserved(task)]),
        )

    def held(self, prompts: list[Encoded]) -> list[Tensor]:
        """The keys of each preserved prompt, (n, d): the older code's are all of its tokens."""
        return [one.embedding if self.config.tokens == "all" else one.keys(self.config.tokens) for one in prompts]

    def edits(self, task: UnlearningTask) -> list[tuple[str, str]]:
        """Prompts to edit, each with its guide."""
        return [pair for concept in task.concepts for pair in edits(self.config, concept, task)]

    def preserved(self, task: UnlearningTask) -> list[str]:
        """Prompts to preserve, each once; the older code always preserves the empty one."""
        empty = [""] if self.config.tokens == "all" else []
        return list(dict.fromkeys([*empty, *preserved(self.config, task)]))


def along(weight: Tensor, keys: Tensor, guides: Tensor) -> Tensor:
    """How much of the keys' values is in the guides': <W k, W g> / <W k, W k>, summed over tokens; a scalar, fp64.

    `weight` is (d_out, d), `keys` and `guides` are (n, d).
    """
    own, guide = keys.to(weight) @ weight.T, guides.to(weight) @ weight.T
    return (own * guide).sum() / own.square().sum()
