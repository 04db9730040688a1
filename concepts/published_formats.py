"""Columns that are not ours: what they mean in the files of the literature, and how to turn those into our own.

Most published prompt files hold one prompt a row and name no concept; ours holds one concept a row.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from efface.errors import did_you_mean

INDEX = "numbers the rows, as pandas writes them: leave it out, with to_csv(…, index=False)"
OURS = ("concept_type", "concept_name", "direct_prompt", "indirect_prompt", "adversarial_prompt")


@dataclass(frozen=True)
class Format:
    """A kind of prompt file, known by columns that it has."""

    papers: str
    columns: frozenset[str]
    prompt: str
    """The column that holds the prompt."""
    concept: str = ""
    """A column that may say which concept it asks for."""

    def advice(self, names: Collection[str]) -> str:
        """What the file is, and how its prompts come into a file of ours."""
        concept = f"column '{self.concept}'" if self.concept in names else "no column"
        return (
            f"holds one prompt a row, as the files of {self.papers} do (column '{self.prompt}'; {concept} names the "
            "concept); should hold one concept a row: put the prompts of a concept side by side into the columns "
            "concept_name, direct_prompt_1, …, and attacks into adversarial_prompt_1, adversarial_prompt_2, …"
        )


def _format(papers: str, columns: str, prompt: str, concept: str = "") -> Format:
    return Format(papers, frozenset(columns.split()), prompt, concept)


# The first that fits counts. Columns as in YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark; AIML-TUDA/i2p and
# its copies in OPTML-Group/Diffusion-MU-Attack and joycenerd/P4D; rohitgandikota/erasing and what follows it;
# chiayi-hsu/Ring-A-Bell.
FORMATS = (
    _format("MMA-Diffusion", "adv_prompt", "adv_prompt"),
    _format("I2P, and its copies in UnlearnDiffAtk and P4D,", "prompt categories", "prompt", "categories"),
    _format("ESD, UnlearnDiffAtk and P4D", "prompt evaluation_seed artist", "prompt", "artist"),
    _format("ESD, UnlearnDiffAtk and P4D", "prompt evaluation_seed class", "prompt", "class"),
    _format("P4D", "prompt evaluation_seed classes", "prompt", "classes"),
    _format("Ring-A-Bell, UnlearnDiffAtk and P4D", "prompt evaluation_seed", "prompt"),
    _format("several benchmarks", "prompt", "prompt"),
    _format("several benchmarks", "prompts", "prompts"),
    _format("several benchmarks", "text", "text"),
    _format("several benchmarks", "caption", "caption"),
)

PROMPT_LIST = Format("UnlearnCanvas and other lists of prompts", frozenset(), "", "")
"""A text file with one prompt a line, and no header."""

THEME_AND_CLASS = re.compile(r"an? (?P<class>.+) image in (?P<theme>.+) style\.?", re.IGNORECASE)
"""How UnlearnCanvas asks (`data/*/prompts.txt` of OPTML-Group/UnlearnCanvas): `A Cats image in Van Gogh style.`"""


def labels_of_line(prompt: str) -> str:
    """What a line of a list asks for, where it is one of UnlearnCanvas: its class and its theme."""
    found = THEME_AND_CLASS.fullmatch(prompt)
    return f"{found['class']}, {found['theme']}" if found else ""


def known_format(names: Collection[str]) -> Format | None:
    """The kind of file that has these columns (in lower case); None of one that names concepts as ours does."""
    if "concept_name" in names:
        return None
    return next((known for known in FORMATS if known.columns <= set(names)), None)


def column_meant(name: str, position: int) -> str:
    """The end of a sentence about a column that is not ours."""
    if position == 0 and re.fullmatch(r"unnamed: \d+|index", name):
        return INDEX
    joined = re.sub(r"[ -]+", "_", name)
    if joined != name and re.sub(r"_\d+$", "", joined) in OURS:
        return f"should be written '{joined}'"
    copy = re.fullmatch(r"(.+)\.\d+", name)
    if copy and copy[1] in OURS:
        return f"which pandas calls a second '{copy[1]}': number such columns, '{copy[1]}_1', '{copy[1]}_2'"
    if name.startswith(("adjacent", "retain")):
        return "adjacent and retained concepts are asked for by the direct prompts of their own rows"
    return did_you_mean(name, OURS)
