"""Prompts as a network's conditioning; tokens of CLIP, and its text encoder."""

import itertools
import re
from collections.abc import Collection, Sequence

from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.family import FAMILIES


def encode_prompts(base: Base, prompts: Sequence[str]) -> Conditioning:
    """What the base's family makes of the prompts, one row each, fp32 on the base's device.

    Each prompt is encoded by itself, so that its bits do not depend on its neighbours.
    """
    return FAMILIES.get(base.spec.family).encode_prompts(base, prompts)


def encode_ids(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """(B, 77, D) fp32 from token ids (B, 77), with gradient where the encoder asks for one."""
    return text_encoder(ids, attention_mask=None).last_hidden_state.float()


def token_ids(base: Base, prompts: Sequence[str]) -> Tensor:
    """(B, 77) int64 on the base's device: BOS, the prompt cut to 75 tokens, EOS, padding."""
    return _tokenize(base, prompts)["input_ids"].to(base.device)


def last_subject_token(base: Base, prompts: Sequence[str]) -> list[int]:
    """The index of each prompt's last token before EOS: 75 where it was cut, 0 (BOS) where it is empty."""
    return [int(length) - 2 for length in _tokenize(base, prompts)["attention_mask"].sum(dim=1)]


def subject_tokens(base: Base, prompt: str, subject: str) -> list[int]:
    """The positions in `prompt` of the tokens of `subject`, wherever it stands; [] where the prompt was cut before."""
    ids, words = token_ids(base, [prompt])[0].tolist(), token_ids(base, [subject])[0].tolist()
    words = words[1 : 1 + last_subject_token(base, [subject])[0]]
    starts = [start for start in range(len(ids)) if words and ids[start : start + len(words)] == words]
    return sorted({start + offset for start in starts for offset in range(len(words))})


def with_all_vectors(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """The prompt with every learnt token (textual inversion) of several vectors spelled out: `<toy> <toy>_1 <toy>_2`.

    diffusers names the vectors so, and its pipelines do the same (`maybe_convert_prompt`).
    """
    known = set(tokenizer.get_added_vocab())
    several = sorted((token for token in known if f"{token}_1" in known), key=len, reverse=True)
    if not several:
        return prompt
    meant = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))  # `<toy>_1` by itself is one vector
    return re.sub(meant, lambda found: " ".join(_vectors(found[0], known)), prompt)


def _vectors(token: str, known: Collection[str]) -> list[str]:
    """The tokens of one learnt word; of any other added token itself."""
    others = itertools.takewhile(known.__contains__, (f"{token}_{number}" for number in itertools.count(1)))
    return [token, *others]


def _tokenize(base: Base, prompts: Sequence[str]) -> dict[str, Tensor]:
    return base.tokenizer(
        [with_all_vectors(base.tokenizer, prompt) for prompt in prompts],
        padding="max_length",
        max_length=base.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
