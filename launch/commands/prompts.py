"""`efface prompts`: read, check and show a prompt file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import UserError
from efface.launch.arguments.prompt_window import UNKNOWN_WINDOW, TextEncoderOption, find_window
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    from efface.concepts.concept import ConceptSet
    from efface.concepts.prompts import Prompt, PromptSet
    from efface.concepts.published_prompts import PublishedPrompts
    from efface.concepts.text_window import CutPrompt, TextWindow


@dataclass(frozen=True, kw_only=True)
class PromptsOptions:
    """Read, check and show a prompt file."""

    file: Annotated[str, typer.Argument(help="A prompt set by name, or a CSV file such as the challenge's.")]
    concepts: Annotated[
        str,
        typer.Option("--concepts", help="The concept set its names belong to; default: found by the file's names."),
    ] = ""
    concept: Annotated[
        str | None, typer.Option("--concept", "-c", help="Show every prompt this target is judged by.")
    ] = None
    base: TextEncoderOption = ""


@dataclass(frozen=True)
class PromptListing:
    """A prompt file that was read without an error.

    counts: prompts of each concept on each axis; selected: the prompts of the one target that was requested; window:
    what the text encoder reads, None where that is not known; cut: prompts that it does not read to their end.
    """

    file: str
    prompt_set: "PromptSet"
    concept_set: "ConceptSet"
    counts: dict[str, dict[str, int]]
    selected: "list[Prompt] | None"
    window: "TextWindow | None" = None
    cut: "tuple[CutPrompt, ...]" = ()


@dataclass(frozen=True)
class PublishedListing:
    """A published file with one prompt a row, and what was understood of it."""

    read: "PublishedPrompts"
    window: "TextWindow | None" = None

    @property
    def cut(self) -> int | None:
        """How many prompts the text encoder does not read to their end; None: not known."""
        if self.window is None:
            return None
        readings = self.window.read([prompt.text for prompt in self.read.prompts])
        return sum(reading.length > self.window.size for reading in readings)

    def show(self) -> None:
        """What it is, what its columns mean, and what can be done with it."""
        read, form = self.read, self.read.format
        seeds = sum(prompt.seed is not None for prompt in read.prompts)
        print_line(f"{read.file}: {len(read.prompts)} prompts in the columns of {form.papers.rstrip(',')}")
        if form.prompt:
            print_line(f"prompts in column '{form.prompt}'" + (f", labels in '{form.concept}'" if form.concept else ""))
        if seeds:
            print_line(f"{seeds} name a seed, which is not used: instances have seeds of their own")
        if read.empty:
            print_line(f"{read.empty} rows have no prompt")
        if read.repeated:
            print_line(
                f"{read.repeated} rows repeat the text of another, which is tried once and has the labels of both"
            )
        if self.window is None:
            print_line(UNKNOWN_WINDOW)
        elif self.cut:
            print_line(
                f"{self.cut} prompts are longer than the {self.window.size} tokens that the text encoder of base "
                f"'{self.window.base}' reads, and nothing behind those is asked for"
            )
        if read.ignored:
            print_line(f"not read: {', '.join(read.ignored)}")
        if read.concepts:
            print_table(["label", "prompts"], [[name, count] for name, count in read.concepts.items()])
        print_line("it names no concept of a set: try it with `efface attack MODEL --attack published --set file=…`")

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        read = self.read
        return {
            "file": read.file,
            "format": read.format.papers.rstrip(","),
            "prompt_column": read.format.prompt,
            "concept_column": read.format.concept,
            "prompts": len(read.prompts),
            "labels": read.concepts,
            "ignored": list(read.ignored),
            "empty": read.empty,
            "repeated": read.repeated,
            "window": self.window and self.window.size,
            "cut": self.cut,
        }


def run(options: PromptsOptions) -> "PromptListing | PublishedListing":
    """Read and check the file. Raises UserError."""
    published = _published(options.file)
    return PublishedListing(published, find_window(options.base, "")) if published else _listing(options)


def _published(file: str) -> "PublishedPrompts | None":
    """The prompts of a published file; None of a prompt set."""
    from efface.concepts.prompts import prompt_set_names
    from efface.concepts.published_prompts import published_format, read_published
    from efface.files import local_path

    if file in prompt_set_names():
        return None
    try:
        path = local_path(file)
        if not path.is_file() or published_format(path) is None:
            return None
    except OSError:
        return None
    return read_published(path)


def _listing(options: PromptsOptions) -> PromptListing:
    """Of a prompt set."""
    from efface.concepts.concept import load_concept_set
    from efface.concepts.prompts import AXES, load_prompt_set
    from efface.concepts.text_window import check_concepts, cut_prompts

    concept_set = load_concept_set(options.concepts) if options.concepts else _concept_set_for(options.file)
    prompt_set = load_prompt_set(options.file, concept_set)
    selected = texts = None
    if options.concept is not None:
        target = concept_set.find(options.concept)
        selected = [prompt for axis in AXES for prompt in prompt_set.axis(axis, concept_set, target)]
        texts = {prompt.text for prompt in selected}
    window = find_window(options.base, concept_set.name)
    if window:
        check_concepts(concept_set, window)
    cut = tuple(cut_prompts(prompt_set, concept_set, window, texts)) if window else ()
    if selected is not None:
        return PromptListing(options.file, prompt_set, concept_set, {}, selected, window, cut)
    counts = {}
    for name in prompt_set.rows:
        counts[name] = {str(axis): n for axis, n in prompt_set.counts(concept_set, concept_set.find(name)).items()}
    return PromptListing(options.file, prompt_set, concept_set, counts, None, window, cut)


def show(listing: "PromptListing | PublishedListing") -> None:
    from efface.concepts.prompts import AXES

    if isinstance(listing, PublishedListing):
        listing.show()
        return
    if listing.selected is not None:
        print_table(["axis", "concept", "prompt"], [[p.axis, p.asked_concept, p.text] for p in listing.selected])
        for line in _findings(listing):
            print_line(line)
        return
    rows = [[name, *(count[axis] for axis in AXES)] for name, count in listing.counts.items()]
    print_table(["concept", *AXES], rows)
    for line in _findings(listing):
        print_line(line)
    verdict = "prompts are cut" if listing.cut else "no error found" if listing.window else "no other error found"
    print_line(f"{listing.file}: {len(rows)} concepts of '{listing.concept_set.name}', {verdict}")


def _findings(listing: PromptListing) -> Iterator[str]:
    """What is to be said of the length of the prompts, a line each."""
    from efface.concepts.text_window import summary

    if listing.window is None:
        yield UNKNOWN_WINDOW
    elif listing.cut:
        rows = listing.prompt_set.rows.values()
        prompts = sum(len(group) for row in rows for group in (row.direct, row.indirect, row.adversarial))
        if listing.selected is not None:
            prompts = len({prompt.text for prompt in listing.selected})
        yield summary(listing.cut, listing.prompt_set, listing.window, prompts, named=0)
        yield from map(str, listing.cut)


def as_json(listing: "PromptListing | PublishedListing") -> Any:
    """The prompts of the target that was requested, or how many there are of each; of a published file, what it is."""
    if isinstance(listing, PublishedListing):
        return listing.as_json()
    if listing.selected is not None:
        return [vars(prompt) for prompt in listing.selected]
    prompt_set = listing.prompt_set
    identity = {"name": prompt_set.name, "sha256": prompt_set.sha256, "concept_set": listing.concept_set.name}
    window = listing.window and listing.window.size
    return {**identity, "prompts": listing.counts, "window": window, "cut": [vars(prompt) for prompt in listing.cut]}


COMMAND = Command("prompts", PromptsOptions, run, show, as_json=as_json)


def _concept_set_for(file: str) -> "ConceptSet":
    """The concept set named like the prompt set, or the one shipped set that knows the file's names."""
    from efface.concepts.concept import concept_set_names, load_concept_set
    from efface.concepts.prompts import load_prompt_set

    if file in concept_set_names():
        return load_concept_set(file)
    errors = []
    for name in concept_set_names():
        concept_set = load_concept_set(name)
        try:
            load_prompt_set(file, concept_set)
        except UserError as error:
            errors.append(str(error))
        else:
            return concept_set
    # An error that is not about a name is the file's own; otherwise the names fit no set.
    own = [error for error in errors if "unknown concept" not in error]
    raise UserError(own[0] if own else f"{errors[0]}; give --concepts, if its names belong to a set of your own")
