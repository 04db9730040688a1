"""Options that several commands share, as typer takes them."""

from typing import Annotated, Any

import typer

from efface.launch.arguments.output_files import output

LOCAL: dict[str, Any] = {"parser": output, "metavar": "PATH"}
"""Of an option or argument that is a path on this machine."""

BaseOption = Annotated[
    str,
    typer.Option(
        "--base",
        "-b",
        help="A base of `efface bases`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.",
    ),
]
ConceptsOption = Annotated[
    str | None, typer.Option("--concepts", help="Concept set by name or file; default: the base's own.")
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", help="Prompt set by name or CSV file; default: the base's own.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that exists, whatever it is.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one.")]

LicenceOption = Annotated[
    str,
    typer.Option(help="What is declared of the models' licence: a word of the hub's, such as apache-2.0, or a text."),
]
DELTA: dict[str, Any] = {"metavar": "DELTA"}
"""Of an argument that is a delta: a file, or the hub's `owner/name`, as `models.files.hub.find_delta` takes them."""

CampaignArgument = Annotated[str, typer.Argument(help="A campaign YAML, or the name of a shipped one.")]
RunFolderArgument = Annotated[str, typer.Argument(help="A run folder: a path, or a URL such as s3://bucket/folder.")]
RunFolderOption = Annotated[
    str | None,
    typer.Option("--out", "-o", help="The run folder, a path or a URL such as s3://bucket/folder; default: runs/NAME."),
]
OverridesOption = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a key of the campaign; repeatable."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="At most this many workers; 0: in this process, without Ray."),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Join the Ray cluster at this address; default: $RAY_ADDRESS, or a local one."),
]
