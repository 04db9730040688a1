"""The vision-language judge: a LLaVA-like model is asked, per image, whether the concept is there, yes or no.

`present` is the answer as read; an answer that is neither yes nor no is no verdict (None), never a "no". The
score is the probability of yes against no in the first token of the answer:

    score = sum_y exp(logit_y) / (sum_y exp(logit_y) + sum_n exp(logit_n)),   y, n: the spellings of yes and
    no
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.eval.judge import UNREADABLE, Verdict
from efface.eval.judge_files import batches, load_model, load_processor, padded, weights_sha256
from efface.eval.judge_spec import VlmSpec
from efface.files import content_id

# The conversation LLaVA 1.5 was trained on, for processors that bring no chat template.
LLAVA_CHAT_TEMPLATE = "USER: {image}\n{question} ASSISTANT:"


PAD_TO_MULTIPLE_OF = 64
"""Tokens that the length of a batch is a multiple of, so that questions of about one length come in one shape."""


def read_answer(text: str) -> bool | None:
    """Yes, no, or None: the first word where it is one of them, else whichever of the two the answer holds
    alone.
    """
    words = re.findall(r"[a-z]+", text.casefold())
    if words and words[0] in ("yes", "no"):
        return words[0] == "yes"
    if ("yes" in words) != ("no" in words):
        return "yes" in words
    return None


def yes_probability(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> Tensor:
    """logits (B, vocabulary) of the answer's first token -> probability of yes against no, float64, (B,)."""
    logits = logits.double()
    return (logits[:, list(yes)].logsumexp(dim=1) - logits[:, list(no)].logsumexp(dim=1)).sigmoid()


class VlmJudge:
    """Judges any concept: it asks in words."""

    def __init__(self, name: str, spec: VlmSpec, model: Any, processor: Any) -> None:
        self.name = name
        self.spec = spec
        self.model = model
        self.processor = processor
        processor.tokenizer.padding_side = "left"  # the answers of a batch all begin after the last column
        self.yes = first_tokens(processor.tokenizer, "yes")
        self.no = first_tokens(processor.tokenizer, "no")
        if set(self.yes) & set(self.no):
            raise UserError(f"judge '{name}': its tokenizer does not tell yes from no by the first token")
        self.weights = weights_sha256(model)
        self.version = content_id({"weights": self.weights, "spec": spec.model_dump(exclude={"source", "batch_size"})})

    def check(self, concepts: Iterable[Concept]) -> None:
        """Any concept can be asked for."""

    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for rows in batches(len(images), self.spec.batch_size):
            answers, scores = self._answers(images[rows], concepts[rows])
            for answer, score in zip(answers, scores, strict=True):
                present = read_answer(answer)
                verdicts.append(UNREADABLE if present is None else Verdict(present, score))
        return verdicts

    @torch.inference_mode()
    def _answers(self, images: np.ndarray, concepts: Sequence[Concept]) -> tuple[list[str], list[float]]:
        """Greedy answers, and the probability of yes in the first token of each."""
        questions = [self.prompt(concept) for concept in concepts]
        questions += questions[-1:] * (self.spec.batch_size - len(questions))
        pictures = [Image.fromarray(image) for image in padded(images, self.spec.batch_size)]
        inputs = self.processor(
            images=pictures, text=questions, return_tensors="pt", padding=True, pad_to_multiple_of=PAD_TO_MULTIPLE_OF
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokenizer = self.processor.tokenizer
        generated = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.spec.answer_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = generated.sequences[:, inputs["input_ids"].shape[1] :]
        scores = yes_probability(generated.logits[0], self.yes, self.no)
        answers = tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers[: len(concepts)], scores.tolist()[: len(concepts)]

    def prompt(self, concept: Concept) -> str:
        """The text that goes in with the image, in the model's own chat format where it has one."""
        question = self.spec.question.format(question=concept.question)
        if not getattr(self.processor, "chat_template", None):
            return LLAVA_CHAT_TEMPLATE.format(
                image=getattr(self.processor, "image_token", "<image>"), question=question
            )
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))


def first_tokens(tokenizer: Any, word: str) -> list[int]:
    """The tokens an answer of `word` may begin with: lower, title and upper case, with and without a space
    before.

    A sentencepiece tokenizer spells a leading space as a token of its own; that one says nothing and is left
    out.
    """
    spellings = [before + form for before in ("", " ") for form in (word, word.title(), word.upper())]
    found = set()
    for spelling in spellings:
        ids = tokenizer(spelling, add_special_tokens=False).input_ids
        spoken = [token for token in ids if tokenizer.decode([token]).strip()]
        if spoken and tokenizer.decode([spoken[0]]).strip().casefold() == word:
            found.add(spoken[0])
    if not found:
        raise UserError(f"the judge's tokenizer has no single token for '{word}', so its answers have no probability")
    return sorted(found)


def load_vlm(name: str, spec: VlmSpec, device: str | torch.device) -> VlmJudge:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = getattr(torch, spec.dtype)
    model = load_model(AutoModelForImageTextToText, spec.source, device, dtype=dtype)
    return VlmJudge(name, spec, model, load_processor(AutoProcessor, spec.source))
