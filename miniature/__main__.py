"""`python -m efface.miniature build | measure | concepts | control`: make the miniature, or parts of what it ships."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from efface.files import write_atomic, write_json
from efface.miniature import HERE
from efface.miniature.build import Sizes, build
from efface.miniature.card import card
from efface.miniature.control import build_control
from efface.miniature.measure import measure
from efface.miniature.prompts import write_concept_files

app = typer.Typer(no_args_is_help=True, add_completion=False)

Out = Annotated[Path, typer.Option(help="Folder that gets model/, judge/, quality.json and CARD.md.")]
Work = Annotated[Path, typer.Option(help="Folder for rendered pictures and checkpoints, about 400 MB.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def chosen_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


@app.command("build")
def build_command(out: Out = HERE, work: Work = Path(".cache/miniature"), device: Device = "auto") -> None:
    """Draw the world, train VAE, judge, text encoder and UNet, measure, and write the card."""
    quality = build(out, work, chosen_device(device), Sizes())
    typer.echo("\n".join(f"{name}: {value:.1%}" for name, value in quality["summary"].items()))


@app.command("measure")
def measure_command(out: Out = HERE, device: Device = "auto") -> None:
    """Measure the saved model and judge again and rewrite quality.json and the card."""
    quality = measure(out, chosen_device(device))
    quality["build"] = json.loads((out / "quality.json").read_text())["build"]
    write_json(out / "quality.json", quality)
    write_atomic(out / "CARD.md", card(quality).encode())


@app.command("concepts")
def concepts_command(folder: Annotated[Path, typer.Option()] = HERE.parent / "concepts" / "data") -> None:
    """Write the concept set and the prompt set; adversarial prompts already there are kept."""
    write_concept_files(folder)


@app.command("control")
def control_command(
    concept: Annotated[str, typer.Argument(help="The thing that the model never knows.")],
    out: Annotated[Path, typer.Option(help="Folder that gets the diffusers model.")],
    work: Annotated[Path, typer.Option(help="Folder for pictures and checkpoints, about 100 MB.")],
    device: Device = "auto",
) -> None:
    """Train a miniature that never knew a concept, the control of attacks that learn: 40 minutes on two cores."""
    build_control(concept, out, work, chosen_device(device))


if __name__ == "__main__":
    app()
