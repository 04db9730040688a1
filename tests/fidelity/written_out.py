"""What the comparisons of closed forms share: three concepts, and a model's keys and projections as fp64 arrays."""

from collections.abc import Mapping

import numpy as np
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base

CAT = Concept(name="cat", kind="animal", phrase="a cat", anchor="dog")
DOG = Concept(name="dog", kind="animal", phrase="a good dog")
BIRD = Concept(name="bird", kind="animal", phrase="a bird", anchor="a sky", retained=("cat", "dog", "fish"))
FISH = Concept(name="fish", kind="animal", phrase="some fish")
ANIMALS = ConceptSet(name="animals", version=1, concepts=(CAT, DOG, BIRD, FISH))


def encode(base: Base, prompt: str) -> tuple[np.ndarray, int]:
    """The prompt's embedding (77, d) and the index of its last token before the end of text."""
    tokens = base.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embedding = base.text_encoder(tokens.input_ids).last_hidden_state[0]
    return embedding.double().numpy(), int(tokens.attention_mask.sum()) - 2


def last(base: Base, prompt: str) -> np.ndarray:
    """The key (d,) of its last word."""
    embedding, index = encode(base, prompt)
    return embedding[index]


def projections(base: Base, *parts: str) -> dict[str, np.ndarray]:
    """`to_k`, `to_v` of every text cross-attention, by the full name of its weight."""
    return {
        f"unet.{name}.weight": module.weight.detach().double().numpy()
        for name, module in base.unet.named_modules()
        if "attn2" in name and name.endswith(parts)
    }


def assert_same(solved: Mapping[str, torch.Tensor], expected: Mapping[str, np.ndarray]) -> None:
    """The same fp32 weights, up to their rounding."""
    assert solved.keys() == expected.keys()
    for name, value in solved.items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=2e-6)
