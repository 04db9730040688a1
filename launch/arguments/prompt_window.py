"""Which base's text encoder reads prompts that are only looked at, and how much of a prompt it reads."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from efface.concepts.text_window import TextWindow

TextEncoderOption = Annotated[
    str,
    typer.Option(
        "--base", "-b", help="The base whose text encoder reads the prompts; default: that of the concepts, or sd-v1-4."
    ),
]

UNKNOWN_WINDOW = "the base is not fetched yet, nor is its tokenizer: it is not known how much of a prompt it reads"


def find_window(base: str, concept_set: str) -> "TextWindow | None":
    """What the text encoder of a base reads: the named one, else the shipped one with these concepts, else SD v1.4.

    None where no tokenizer of it is on this machine.
    """
    from efface.config_files import list_configs
    from efface.models.base import read_base
    from efface.models.text.tokenizer import text_window

    if base:
        return text_window(read_base(base))
    shipped = [spec for name in list_configs("bases") if (spec := read_base(name)).concepts == concept_set]
    return text_window(shipped[0] if shipped else read_base("sd-v1-4"))
