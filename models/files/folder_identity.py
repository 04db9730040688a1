"""The identity of a model beside the base, a judge or a detector: what its folder holds, and not where that lies."""

import re

from efface.errors import UserError
from efface.files import local_path, sha256_file
from efface.models.files.model_files import PACKAGE, NotCached, locate
from efface.models.files.untrusted_models import check_model_files, check_whole_model

FILES = ("*.json", "*.safetensors")
"""What such a folder holds of its model."""

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def folder_content(source: str) -> dict[str, str] | None:
    """By file name the SHA-256 of a folder's files; None for an id of the hub, which stands for itself.

    Raises UserError where the source is neither, or the folder holds no model.
    """
    local = source.startswith(PACKAGE) or local_path(source).is_dir()
    if not local and not HUB_ID.fullmatch(source):
        raise UserError(f"source: '{source}' is no folder, and no id of a model on the hub")
    try:
        folder = locate(source, FILES, fetch=False)
    except NotCached:
        return None
    if not local:
        check_model_files(folder, source)
        return None
    check_whole_model(folder, source)
    files = sorted(path for pattern in FILES for path in folder.glob(pattern))
    return {path.name: sha256_file(path) for path in files}
