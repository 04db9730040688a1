"""Jobs that a folder holds as files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from efface.config_files import StrictModel
from efface.errors import UserError
from efface.launch.clusters.launch_record import LaunchRecord, append_records
from efface.launch.launcher import LAUNCHERS, Launcher, Submission, SubmitOptions


class ToySettings(StrictModel):
    folder: str = Field(description="where jobs are files")


@dataclass(frozen=True, kw_only=True)
class ToyOptions(SubmitOptions):
    """Put a campaign into the toy box."""

    colour: Annotated[str, typer.Option(help="Of the job.")] = "red"


@LAUNCHERS.register("toy")
class Toy(Launcher[ToySettings, ToyOptions]):
    name = "toy"
    id_pattern = r"toy-[0-9]+"
    settings = ToySettings
    options = ToyOptions

    def render(self, launch):
        command = " ".join(launch.spec.command("campaign.yaml"))
        return {"toy.txt": f"{launch.options.colour}: {command}\n"}

    def submit(self, launch, texts):
        box = Path(launch.settings.folder)
        id = f"toy-{len(list(box.iterdir()))}"
        (box / id).write_text(texts["toy.txt"])
        job = LaunchRecord(self.name, "campaign", id, launch.profile.name)
        append_records(launch.spec.folder, [job])
        return Submission([job], new=True)

    def state(self, id, profile):
        return "running" if profile and (Path(self.section(profile).folder) / id).exists() else "unknown"

    def stop(self, launch):
        raise UserError("toys do not stop")
