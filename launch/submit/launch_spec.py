"""What is to be launched: a campaign and its run folder, the same for every launcher."""

import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from efface.cluster.campaign.spec import Campaign, read_campaign
from efface.errors import UserError
from efface.files import as_path, content_id, is_remote


@dataclass(frozen=True)
class LaunchSpec:
    """A campaign with its overrides laid in, and where its run folder lies, as a path or a URL."""

    campaign: Campaign
    out: str

    @property
    def id(self) -> str:
        """The same campaign in the same place has the same id: letters, digits, hyphens."""
        identity = {"campaign": self.campaign.model_dump(mode="json"), "out": self.out}
        return f"efface-{self.campaign.name}-{content_id(identity)[:12]}"

    @property
    def text(self) -> str:
        """The campaign as YAML, every default written out."""
        return OmegaConf.to_yaml(OmegaConf.create(self.campaign.model_dump(mode="json")))

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
    """The order to run `campaign` in `out` (default `RUNS/NAME`); a local path is made absolute. Raises UserError."""
    read = read_campaign(campaign, overrides)
    location = out or f"{runs}/{read.name}"
    if "\n" in location:
        raise UserError("--out holds a line break, should be a folder or a URL")
    if re.search(r"://[^/@]*:[^/@]*@", location):
        raise UserError("--out holds a password, which scripts and logs would show; leave it to the store's client")
    folder = as_path(location)
    return LaunchSpec(read, str(folder) if is_remote(folder) else str(folder.absolute()))
