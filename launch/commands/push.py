"""`efface push`: a delta, an exported folder or a package on the hub, with a model card.

What is sent is prepared by `cluster/package/publication.py`, and sent by `models/files/hub.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.launch.arguments.options import LOCAL, LicenceOption
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    from efface.cluster.package.publication import Publication


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Publish a model on the Hugging Face hub with a model card; without --send only show what would be sent.

    Log in with `hf auth login`, or set HF_TOKEN.
    """

    source: Annotated[
        Path, typer.Argument(help="A delta file, or a folder of `efface export` or `efface package`.", **LOCAL)
    ]
    repository: Annotated[str, typer.Argument(help="On the hub: owner/name.")]
    run: Annotated[
        str | None,
        typer.Option(help="A run folder that has judged the model; without, the card says that nobody did."),
    ] = None
    base: Annotated[
        str | None, typer.Option("--base", "-b", help="The base, where the delta names one that is not known here.")
    ] = None
    licence: LicenceOption = ""
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that is new.")] = False
    send: Annotated[bool, typer.Option("--send", help="Send it.")] = False


@dataclass(frozen=True)
class Pushed:
    """What was sent, or would be."""

    publication: "Publication"
    url: str | None
    """Of the commit; None where nothing was sent."""


def run(options: PushOptions) -> Pushed:
    """Send it, or only prepare it. Raises UserError."""
    from efface.cluster.package.publication import publication
    from efface.models.files.hub import upload

    prepared = publication(
        options.source, options.repository, run=options.run, base=options.base, licence=options.licence
    )
    if not options.send:
        return Pushed(prepared, None)
    message = f"Publish a {prepared.kind} of efface"
    return Pushed(prepared, upload(prepared.repository, prepared.files, message, private=not options.public))


def show(pushed: Pushed) -> None:
    sizes = pushed.publication.sizes()
    if pushed.url:
        print_line(f"{pushed.url}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.2f} MB")
        return
    for line in pushed.publication.card.splitlines():
        print_line(line)
    print_line("")
    print_table(["file", "MB"], [[name, f"{size / 1e6:.2f}"] for name, size in sizes.items()])
    judged = "" if pushed.publication.is_judged else "; --run gives the card its scores"
    print_line(f"Nothing was sent to {pushed.publication.repository}: give --send for that{judged}")


def as_json(pushed: Pushed) -> dict[str, Any]:
    """Files with their bytes, and the card."""
    prepared = pushed.publication
    return {
        "repository": prepared.repository,
        "kind": prepared.kind,
        "sent": pushed.url,
        "files": prepared.sizes(),
        "card": prepared.card,
    }


COMMAND = Command("push", PushOptions, run, show, as_json=as_json)
