"""Published prompts: those of a benchmark's file (I2P, Ring-A-Bell, MMA-Diffusion, …) tried as they are.

They were found against other models, so what they show is how well they transfer, never how strong an attack is that
knows this model. Many show the concept not even on the unedited base, whose own rate therefore stands beside.
"""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from efface.concepts.published_prompts import read_published, split_concepts
from efface.errors import UserError
from efface.eval.attack import ATTACKS, Attack, AttackConfig, AttackKind, AttackTarget
from efface.eval.oracle import Attempt, Instance, Oracle
from efface.files import content_id


class PublishedConfig(AttackConfig):
    file: str = Field(description="as it is downloaded: a CSV with one prompt a row, or a .txt; see `efface prompts`")
    label: str | None = Field(None, description="only prompts that the file says are of this; default: all")
    limit: int = Field(20, ge=1, description="prompts that are tried on each instance, the first of the file")


@ATTACKS.register("published")
class PublishedPrompts(Attack):
    """Tries the prompts of a published file, by the seed of the instance."""

    Config = PublishedConfig
    config: PublishedConfig
    kind: ClassVar[AttackKind] = "static"

    @classmethod
    def read(cls, config: PublishedConfig) -> str:
        """Of the prompts, as the file may be another tomorrow."""
        return content_id([[prompt.text, prompt.concept] for prompt in read_published(config.file).prompts])

    def prepare(self, oracle: Oracle, target: AttackTarget, seed: int) -> None:
        """Reads the file. Raises UserError where it is none, or has no prompt of the label."""
        super().prepare(oracle, target, seed)
        read = read_published(self.config.file)
        label = self.config.label
        texts = [p.text for p in read.prompts if label is None or label in split_concepts(p.concept)]
        if not texts:
            known = ", ".join(list(read.concepts)[:12]) or "none"
            raise UserError(f"{self.config.file}: has no prompt labelled '{label}', its labels are {known}")
        self.texts = texts[: self.config.limit]
        tokenizer = self.base.tokenizer
        lengths = [len(ids) for ids in tokenizer(self.texts, truncation=False, verbose=False)["input_ids"]]
        cut = sum(length > tokenizer.model_max_length for length in lengths)
        if cut:
            self.remark = (
                f"{cut} of {len(self.texts)} prompts are longer than the text encoder reads, and their end is cut"
            )

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        for text in self.texts:
            yield oracle.attempt(oracle.encode(text), instance.seed, prompt=text)
