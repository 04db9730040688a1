"""`efface pull`: a delta of the hub as a file here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from efface.errors import UserError
from efface.launch.arguments.options import LOCAL, ForceOption
from efface.launch.arguments.output_files import check_output
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """Fetch a delta from the Hugging Face hub into a file. Commands that take a delta take its hub id as well."""

    source: Annotated[
        str, typer.Argument(help="owner/name, with @revision if needed; one of several: hf://owner/name/file.")
    ]
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; default: NAME.safetensors.", **LOCAL)
    ] = None
    force: ForceOption = False


@dataclass(frozen=True)
class Pulled:
    """A delta that was fetched."""

    path: Path
    id: str
    base_id: str
    concepts: tuple[str, ...]
    """What it was made to forget; empty where it does not say."""


def run(options: PullOptions) -> Pulled:
    """Write the file. Raises UserError, before anything is fetched where it cannot be written."""
    from efface.files import file_stem, write_atomic
    from efface.models.delta import Delta
    from efface.models.files.hub import download_delta, hub_address

    address = hub_address(options.source)
    if address is None:
        raise UserError(f"{options.source}: is no hub id, should be like owner/name")
    named = Path(address.file).stem if address.file else address.repository.rpartition("/")[2]
    out = options.out or Path(f"{file_stem(named)}.safetensors")
    check_output(out, force=options.force)
    fetched = download_delta(address)
    delta = Delta.load(fetched)
    write_atomic(out, fetched.read_bytes())
    job = delta.provenance.get("job")
    concepts = job.get("concepts", ()) if isinstance(job, dict) else ()
    return Pulled(out, delta.id, delta.base_id, tuple(map(str, concepts)))


def show(pulled: Pulled) -> None:
    forgets = f" that forgets {', '.join(pulled.concepts)}" if pulled.concepts else ""
    print_line(f"{pulled.path}: delta {pulled.id}{forgets}, of the base {pulled.base_id[:16]}")


COMMAND = Command("pull", PullOptions, run, show)
