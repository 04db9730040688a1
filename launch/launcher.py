"""What a launcher is: a way to hand a campaign to a cluster, as `efface submit NAME`.

Each file of `launch/submit/` holds one; a package of your own adds one through the entry point group
`efface.launchers`. A launcher reads its own section of the cluster profile, renders what it would submit, has the
cluster check it, submits it, and says how a job is.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

import typer

from efface.errors import UserError
from efface.registry import Registry

if TYPE_CHECKING:
    from pydantic import BaseModel

    from efface.launch.clusters.cluster_profile import ClusterProfile
    from efface.launch.clusters.launch_record import LaunchRecord
    from efface.launch.clusters.launch_spec import LaunchSpec

State = Literal["pending", "running", "done", "failed", "stopped", "gone", "unknown"]
"""How a job is. gone: its cluster no longer knows it; unknown: the cluster does not answer."""

Settings = TypeVar("Settings", bound="BaseModel")
Options = TypeVar("Options", bound="SubmitOptions")

ProfileOption = Annotated[
    str, typer.Option("--cluster", "-c", help="A cluster profile: one of yours or a shipped one by name, or a file.")
]


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Options of every launcher. A subclass adds its own; its docstring is the command's help."""

    campaign: Annotated[str, typer.Argument(help="A campaign YAML, or the name of a shipped one.")]
    cluster: ProfileOption = "local"
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="The run folder, as the cluster sees it: a path or a URL; default: runs/NAME."
        ),
    ] = None
    overrides: Annotated[
        list[str],
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a key of the campaign; repeatable."),
    ] = field(default_factory=list)
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted, and submit nothing.")] = (
        False
    )
    stop: Annotated[bool, typer.Option("--stop", help="Stop the campaign's job instead: it saves, then ends.")] = False


@dataclass(frozen=True)
class Launch(Generic[Settings, Options]):
    """What is to be launched, and where: campaign and run folder, the profile, the launcher's section of it."""

    spec: "LaunchSpec"
    profile: "ClusterProfile"
    settings: Settings
    options: Options


@dataclass(frozen=True)
class Submission:
    """The jobs of a campaign; new: submitted now, and not found as they were; notes: lines to show with them."""

    jobs: "Sequence[LaunchRecord]"
    new: bool
    notes: tuple[str, ...] = ()


class Launcher(ABC, Generic[Settings, Options]):
    """A way to hand a campaign to a cluster.

    name: of the command, and of the launcher's section in a profile. settings: the pydantic model of that section.
    id_pattern: a regular expression for the whole of a job's id; a record of another shape, perhaps somebody else's,
    is never used.
    """

    name: ClassVar[str]
    id_pattern: ClassVar[str]
    settings: type[Settings]
    options: type[Options]

    def section(self, profile: "ClusterProfile") -> Settings:
        """This launcher's section of `profile`, or its defaults. Raises UserError where it needs to be given."""
        found = getattr(profile, self.name, None)
        if found is not None:
            return found
        required = [name for name, field in self.settings.model_fields.items() if field.is_required()]
        if required:
            keys = " and ".join(f"{self.name}.{key}" for key in required)
            raise UserError(f"cluster '{profile.name}': has no section {self.name}, should have at least {keys}")
        return self.settings()

    def runs_folder(self, settings: Settings) -> str:
        """The folder in which run folders lie unless `--out` says otherwise."""
        return "runs"

    @abstractmethod
    def render(self, launch: Launch[Settings, Options]) -> dict[str, str]:
        """Everything that would be submitted, as texts by name, in order. Raises UserError."""

    def check(self, launch: Launch[Settings, Options], texts: Mapping[str, str]) -> None:
        """Ask the cluster whether it would take them, before anything is written. Raises UserError."""
        return

    @abstractmethod
    def submit(self, launch: Launch[Settings, Options], texts: Mapping[str, str]) -> Submission:
        """Submit them, or find the jobs that were. Raises UserError."""

    def follow(self, launch: Launch[Settings, Options], submission: Submission) -> bool:
        """Where the options ask for it, show the output until the job ends; False where it failed."""
        return True

    @abstractmethod
    def state(self, id: str, profile: "ClusterProfile | None") -> State:
        """How a job is; `profile`: the user's own of its cluster, None where there is none of that name."""

    @abstractmethod
    def stop(self, launch: Launch[Settings, Options]) -> list[str]:
        """Have the campaign's jobs save and end; their ids. Raises UserError where there is none."""


LAUNCHERS: Registry[type[Launcher[Any, Any]]] = Registry("launcher", "efface.launchers", package="efface.launch.submit")


def get_launcher(name: str) -> Launcher[Any, Any]:
    """The launcher called `name`. Raises UserError where there is none."""
    return LAUNCHERS.get(name)()
