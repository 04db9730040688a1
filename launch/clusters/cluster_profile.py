"""A cluster profile: all that is known of a cluster where campaigns run, in one YAML file.

    name: campus
    listen: nodes
    environment: {HF_HOME: /scratch/models}
    ray: {address: "http://127.0.0.1:8265"}
    slurm: {partition: gpu, account: vision, time: "08:00:00", gpus: 1, cpus: 8, parts: 16}
    kube: {image: "registry.example.org/efface:0.1.0", claim: runs, workers: 4, gpus: 1}

Each launcher reads its own section, and the campaign stays the same. Profiles are found by name in the user's own
folder, `~/.config/efface/clusters/`, and among those that ship; any other file has to be given by its path. Values go
into scripts, logs and manifests that others may read, so none of them may be a secret. A profile says what is run (its
`setup` lines) and where the user's token is sent, so it is trusted like a script: use your own.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from efface.config_files import CONFIGS, StrictModel, find_config, list_configs, parse, read_yaml
from efface.errors import UserError, did_you_mean
from efface.files import local_path

if TYPE_CHECKING:
    from efface.cluster.campaign.spec import Campaign

PROFILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

ShellWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9/._][A-Za-z0-9._,@:/+=-]*$")]
"""What may stand unquoted in a script."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]+$")]
"""Without line breaks and other control characters, tabs excepted."""

SECRET_WORDS = {"TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "CREDENTIALS", "APIKEY", "KEY"}
ASSIGNMENT = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)\s*[=:]\s*\S")
KEY_MATERIAL = re.compile(r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{12,}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@")


class ClusterProfile(StrictModel):
    """One YAML file. `read_profile` adds a field for the section of each launcher."""

    name: str = Field(pattern=f"^{PROFILE_NAME}$", description="what `--cluster` calls it")
    listen: Literal["loopback", "nodes"] = Field(
        "loopback",
        description="where the servers of a Ray that efface starts can be reached from",
    )
    environment: dict[VariableName, Line] = Field({}, description="variables of every process; no secrets")

    @model_validator(mode="before")
    @classmethod
    def _reject_secrets(cls, data: Any) -> Any:
        found = _find_secret("", data)
        if found:
            raise ValueError(f"{found} looks like a secret, which scripts and logs would show; name a file instead")
        return data


def read_profile(name_or_path: str) -> ClusterProfile:
    """A profile by its name, or the file at a path. Raises UserError."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _read(find_config("clusters", name_or_path))
    # A bare name is never a file of the current folder, which may hold somebody else's files.
    found = profile_by_name(name_or_path)
    if found is None:
        raise UserError(f"unknown cluster '{name_or_path}': {did_you_mean(name_or_path, _known_profiles())}")
    return found


def profile_by_name(name: str) -> ClusterProfile | None:
    """The user's own profile called `name`, or the one that ships; None where there is none. Raises UserError."""
    path = _known_profiles().get(name)
    if path is None:
        return None
    profile = _read(path)
    if profile.name != name:
        raise UserError(f"{path}: name is '{profile.name}', should be '{name}' as the file is called")
    return profile


def user_profiles_folder() -> Path:
    """Where the user keeps profiles: `$XDG_CONFIG_HOME/efface/clusters`, mostly `~/.config/efface/clusters`.

    Where no home folder is known, it is one in which nothing can be found.
    """
    with suppress(UserError):
        return local_path(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "efface" / "clusters"
    return Path(os.devnull) / "efface" / "clusters"


def _known_profiles() -> dict[str, Path]:
    """Name -> file; of two of one name the user's own."""
    shipped = {name: CONFIGS / "clusters" / f"{name}.yaml" for name in list_configs("clusters")}
    own = sorted(user_profiles_folder().glob("*.yaml"))
    return shipped | {path.stem: path for path in own if re.fullmatch(PROFILE_NAME, path.stem)}


def _read(path: Path) -> ClusterProfile:
    from efface.launch.launcher import LAUNCHERS

    data = read_yaml(path)
    sections: dict[str, Any] = {
        name: (LAUNCHERS.get(name).settings | None if name in data else None, None) for name in LAUNCHERS.names()
    }
    model: type[ClusterProfile] = create_model("ClusterProfile", __base__=ClusterProfile, **sections)
    return parse(model, data, str(path))


def check_resources(campaign: "Campaign", where: str, cpus: int, gpus: int) -> None:
    """Raises UserError where a worker of the campaign would not fit into what the profile requests."""
    for what, needed, there in (("cpus", campaign.resources.cpus, cpus), ("gpus", campaign.resources.gpus, gpus)):
        if needed > there:
            raise UserError(
                f"{where}.{what} is {there}, and a worker of campaign '{campaign.name}' needs {needed:g} "
                f"(resources.{what}); raise the one or lower the other"
            )


def _find_secret(key_path: str, value: Any) -> str | None:
    """Where in `value` there seems to be a secret; a variable that names a file (…_FILE, …_PATH) is none."""
    if isinstance(value, dict):
        pairs = [(f"{key_path}.{key}".strip("."), f"{key}={held}", held) for key, held in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{key_path}.{index}", str(held), held) for index, held in enumerate(value)]
    else:
        return None
    for where, text, held in pairs:
        if isinstance(held, dict | list | tuple):
            found = _find_secret(where, held)
            if found:
                return found
            continue
        if KEY_MATERIAL.search(text) or any(map(_names_a_secret, ASSIGNMENT.findall(text))):
            return where
    return None


def _names_a_secret(variable: str) -> bool:
    words = re.split(r"[_-]", variable.upper())
    return bool(SECRET_WORDS & set(words)) and words[-1] not in ("FILE", "PATH")
