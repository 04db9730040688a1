"""A judge by name: what its YAML says, and the judge itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.config_files import find_config, list_configs, parse, read_yaml
from efface.errors import UserError
from efface.eval.judge import JUDGES, Judge, JudgeConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class JudgeSpec:
    """A judge's YAML. name: of the file, without its suffix, and of the judge in tables."""

    name: str
    kind: str
    config: JudgeConfig

    def as_json(self) -> dict[str, Any]:
        """The keys of the file: its kind and the settings that are given."""
        return {"kind": self.kind, **self.config.model_dump(mode="json", exclude_unset=True)}


def judge_names() -> list[str]:
    """The judges shipped in `configs/judges/`."""
    return list_configs("judges")


def judge_name(name_or_path: str | Path) -> str:
    """What a judge is called in tables: the name of its YAML file, without the suffix."""
    return find_config("judges", name_or_path).stem


def read_judge(name_or_path: str | Path) -> JudgeSpec:
    """What the YAML of a judge says, found by its path or a shipped name. Loads no model.

    Raises UserError for an unknown judge, an unknown kind, and whatever else is wrong in the file.
    """
    path = find_config("judges", name_or_path)
    data = read_yaml(path)
    if "kind" not in data:
        raise UserError(f"{path}: key 'kind' is missing, should be one of {', '.join(JUDGES.names())}")
    kind = str(data.pop("kind"))
    try:
        found = JUDGES.get(kind)
    except UserError as error:
        raise UserError(f"{path}: kind: {error}") from error.__cause__
    return JudgeSpec(path.stem, kind, parse(found.Config, data, str(path)))


def load_judge(name_or_path: str | Path, device: str | torch.device = "cpu") -> Judge:
    """The judge of a YAML file, in memory on `device`, as it is before a calibration.

    Raises UserError where the YAML is wrong or the model cannot be loaded.
    """
    spec = read_judge(name_or_path)
    return JUDGES.get(spec.kind).load(spec.name, spec.config, device)
