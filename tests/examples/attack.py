"""An attack that tries words of direct prompts in any order, and measures how near the text encoder puts them."""

import random
from collections.abc import Iterator

import torch
from pydantic import Field

from efface.eval.attack import ATTACKS, AdversarialPrompt, AttackConfig, AttackTarget, PromptAttack
from efface.models.text.text_encoding import encode_prompts


class ShuffleConfig(AttackConfig):
    words: int = Field(4, ge=1, description="words of a prompt")


@ATTACKS.register("shuffle")
class Shuffle(PromptAttack):
    """Shuffles the words of direct prompts, without those that are banned."""

    Config = ShuffleConfig

    def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]:
        words = [word for prompt in (*target.prompts, *target.others) for word in prompt.split()]
        allowed = sorted({word for word in words if not target.banned.matches(word)})
        generator = random.Random(f"{seed} {target.concept.name}")
        goal = encode_prompts(self.base, target.prompts[:1]).encoder_hidden_states.flatten()
        while allowed:
            text = " ".join(generator.choices(allowed, k=self.config.words))
            found = encode_prompts(self.base, [text]).encoder_hidden_states.flatten()
            yield AdversarialPrompt(text, float(torch.cosine_similarity(found, goal, dim=0)), {"seed": seed})
