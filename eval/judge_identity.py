"""The identity of a judge that is not loaded: what a plan needs before any weights are in memory."""

import re
from pathlib import Path

from efface.errors import UserError
from efface.eval.judge_spec import read_judge
from efface.files import content_id, local_path, sha256_file
from efface.models.model_files import PACKAGE, NotCached, locate
from efface.models.untrusted_models import check_model_files

FILES = ("*.json", "*.safetensors")
"""What a judge's folder holds of its model."""

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def judge_identity(name_or_path: str | Path) -> str:
    """16 hex digits over the judge's YAML; of a model on this machine, over its files, and not where they lie.

    Raises UserError for an unknown judge, whatever is wrong in its YAML, and a model on this machine that is none.
    """
    spec = read_judge(name_or_path)
    data, weights = spec.as_json(), spec.config.weights
    if spec.config.identity:
        data["identity"] = spec.config.identity
    if weights is None:
        return content_id([data, {}])
    source = weights.source
    local = source.startswith(PACKAGE) or local_path(source).is_dir()
    if not local and not HUB_ID.fullmatch(source):
        raise UserError(f"{name_or_path}: source: '{source}' is no folder, and no id of a model on the hub")
    try:
        folder = locate(source, FILES, fetch=False)
    except NotCached:
        return content_id([data, {}])
    check_model_files(folder, source)
    if not local:
        return content_id([data, {}])
    data.pop("source", None)
    files = sorted(path for pattern in FILES for path in folder.glob(pattern))
    return content_id([data, {path.name: sha256_file(path) for path in files}])
