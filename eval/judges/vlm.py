"""Kind `vlm`: a LLaVA-like vision-language model answers, for each image, whether the concept is there, yes or no.

`present` is the answer as read; an answer that is neither yes nor no is no verdict (None), never a "no". The
score is the probability of yes against no in the first token of the answer:

    score = sum_y exp(logit_y) / (sum_y exp(logit_y) + sum_n exp(logit_n)),   y, n: the spellings of yes and of no
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.eval.judge import JUDGES, UNREADABLE, JudgeConfig, JudgeWeights, Source, Verdict, check_template
from efface.eval.judging.judge_files import batches, judge_version, load_model, load_processor, padded, weights_sha256

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


class VlmConfig(JudgeConfig):
    """The settings of a vision-language judge."""

    source: Source = Field(
        description="an image-text-to-text model of transformers: package:FOLDER, a folder, or a hub id"
    )
    question: str = Field(
        "Is there {question} in this image? Answer yes or no.",
        description="{question} is the concept's own question",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float16", description="of the weights")
    answer_tokens: int = Field(5, ge=1, le=64, description="longest answer that is read")
    batch_size: int = Field(8, ge=1, description="images per forward pass")

    @field_validator("question")
    @classmethod
    def _names_the_concept(cls, text: str) -> str:
        return check_template(text, "question")

    @property
    def weights(self) -> JudgeWeights:
        return JudgeWeights(self.source, self.dtype)


@JUDGES.register("vlm")
class VlmJudge:
    """Judges any concept that has a question."""

    Config = VlmConfig

    def __init__(self, name: str, config: VlmConfig, model: Any, processor: Any) -> None:
        self.name = name
        self.config = config
        self.model = model
        self.processor = processor
        processor.tokenizer.padding_side = "left"  # the answers of a batch all begin after the last column
        self.yes = first_tokens(processor.tokenizer, "yes")
        self.no = first_tokens(processor.tokenizer, "no")
        if set(self.yes) & set(self.no):
            raise UserError(f"judge '{name}': its tokenizer spells yes and no with the same first token")
        self.weights = weights_sha256(model)
        self.version = judge_version("vlm", config, self.weights)

    @classmethod
    def load(cls, name: str, config: VlmConfig, device: str | torch.device) -> "VlmJudge":
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = load_model(AutoModelForImageTextToText, config.source, device, dtype=getattr(torch, config.dtype))
        return cls(name, config, model, load_processor(AutoProcessor, config.source))

    def check(self, concepts: Iterable[Concept]) -> None:
        """Any concept can be judged."""

    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for rows in batches(len(images), self.config.batch_size):
            answers, scores = self._answers(images[rows], concepts[rows])
            for answer, score in zip(answers, scores, strict=True):
                present = read_answer(answer)
                verdicts.append(UNREADABLE if present is None else Verdict(present, score))
        return verdicts

    @torch.inference_mode()
    def _answers(self, images: np.ndarray, concepts: Sequence[Concept]) -> tuple[list[str], list[float]]:
        """Greedy answers, and the probability of yes in the first token of each."""
        questions = [self.prompt(concept) for concept in concepts]
        questions += questions[-1:] * (self.config.batch_size - len(questions))
        pictures = [Image.fromarray(image) for image in padded(images, self.config.batch_size)]
        inputs = self.processor(
            images=pictures, text=questions, return_tensors="pt", padding=True, pad_to_multiple_of=PAD_TO_MULTIPLE_OF
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokenizer = self.processor.tokenizer
        generated = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.config.answer_tokens,
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
        question = self.config.question.format(question=concept.question)
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

    A sentencepiece tokenizer spells a leading space as a token of its own, which has no meaning and is left out.
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
