"""What a judge is, without loading it: the id that a plan needs before any weights are in memory."""

from pathlib import Path

from efface.config_files import find_config, read_yaml
from efface.files import content_id, sha256_file
from efface.models.model_files import PACKAGE, locate

FILES = ("*.json", "*.safetensors")
"""What a judge's folder holds of its model."""


def judge_identity(name_or_path: str | Path) -> str:
    """16 hex digits over the judge's YAML; where its model lies on this machine, over the model's files, not its place.

    Raises UserError for an unknown judge.
    """
    data = read_yaml(find_config("judges", name_or_path))
    source = str(data.get("source", ""))
    local = source.startswith(PACKAGE) or Path(source).is_dir()
    folder = locate(source, FILES) if local else None
    files = sorted(path for pattern in FILES for path in folder.glob(pattern)) if folder else []
    if local:
        del data["source"]
    return content_id([data, {path.name: sha256_file(path) for path in files}])
