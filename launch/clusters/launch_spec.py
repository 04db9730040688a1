"""What is to be launched: a campaign and its run folder, the same for every launcher."""

import re
from dataclasses import dataclass
from pathlib import Path

from efface.cluster.campaign.spec import Campaign, read_campaign
from efface.config_files import to_yaml
from efface.errors import UserError
from efface.files import as_path, content_id, is_remote
from efface.text import shown


@dataclass(frozen=True)
class LaunchSpec:
    """A campaign with its overrides applied, and where its run folder is, as a path or a URL."""

    campaign: Campaign
    out: str

    @property
    def id(self) -> str:
        """The same campaign in the same run folder has the same id: letters, digits, hyphens."""
        identity = {"campaign": self.campaign.model_dump(mode="json"), "out": self.out}
        return f"efface-{self.campaign.name}-{content_id(identity)[:12]}"

    @property
    def text(self) -> str:
        """The campaign as YAML, every default written out."""
        return to_yaml(self.campaign.model_dump(mode="json"))

    @property
    def folder(self) -> Path:
        return as_path(self.out)

    @property
    def run_folder_is_shared(self) -> bool:
        """Whether the run folder is likely the one that the cluster sees, and not a path on other machines."""
        return is_remote(self.folder) or self.folder.parent.is_dir() or self.folder.is_relative_to(Path.cwd())

    def command(self, campaign: str, *options: str, python: str = "python") -> list[str]:
        """What every launcher runs in the end, with the campaign's text in the file `campaign`."""
        return [python, "-m", "efface", "run", campaign, "--out", self.out, *options]


def read_launch_spec(campaign: str, overrides: list[str], out: str | None, runs: str = "runs") -> LaunchSpec:
    """The request to run `campaign` in `out` (default `RUNS/NAME`); a local path is made absolute. Raises UserError."""
    read = read_campaign(campaign, overrides)
    location = out or f"{runs}/{read.name}"
    if re.search(r"://[^/@]*:[^/@]*@", location):
        raise UserError("--out holds a password, which scripts and logs would show; leave it to the store's client")
    folder = as_path(location)
    absolute = str(folder) if is_remote(folder) else str(folder.absolute())
    if shown(absolute) != absolute:
        raise UserError(f"--out {shown(absolute)}: holds a line break or another control character, should hold none")
    return LaunchSpec(read, absolute)
