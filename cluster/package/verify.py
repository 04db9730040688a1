"""Check a package: every file by its hash, and one image of each model made again from base and delta.

On a machine of the kind that made it, an image is the same to the last bit; elsewhere pixels may differ by rounding, so
the mean difference is given, in grey levels of 255.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from efface.cluster.package.build import OnProgress, manifest
from efface.cluster.package.description import DESCRIPTION, MANIFEST, Description, PackagedModel
from efface.cluster.storage.records import read_json
from efface.config_files import list_configs, parse
from efface.errors import UserError
from efface.eval.judging.evaluate import pixel_sha256
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.plain_files import check_plain

MAX_DIFFERENCE = 2.0
"""Mean difference in grey levels up to which an image counts as the same: rounding of another device stays below."""


@dataclass(frozen=True)
class SampleCheck:
    """One image, made again."""

    model: str
    difference: float
    """Mean absolute difference, in grey levels of 255."""
    is_exact: bool

    @property
    def is_same(self) -> bool:
        return self.difference <= MAX_DIFFERENCE


@dataclass(frozen=True)
class Verification:
    """What was found."""

    files: int
    changed: tuple[str, ...]
    """Files that are missing, or not as the manifest says."""
    added: tuple[str, ...]
    """Files that the manifest does not name."""
    samples: tuple[SampleCheck, ...]

    @property
    def is_good(self) -> bool:
        return not (self.changed or self.added) and all(check.is_same for check in self.samples)


def verify_package(
    root: Path, base: str | None = None, device: str = "cpu", on_progress: OnProgress = lambda *_: None
) -> Verification:
    """Raises UserError where `root` is no package, or the base is not the one that it was made from.

    base: name or path; default: the one that the package names, if it ships with efface; nothing else that a package
    names is looked up. Images are made again only where the files are as they were.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; a package is a folder that `efface package` wrote")
    listed, description = read_json(root, MANIFEST), read_json(root, DESCRIPTION)
    if listed is None or description is None:
        raise UserError(f"{root}: is no package, it lacks {MANIFEST if listed is None else DESCRIPTION}")
    found = manifest(root, on_progress)
    changed = tuple(sorted(name for name in listed if listed[name] != found.get(name)))
    added = tuple(sorted(found.keys() - listed.keys()))
    if changed or added:
        return Verification(len(found), changed, added, ())
    package = parse(Description, description, str(root / DESCRIPTION))
    if base is None and package.base not in list_configs("bases"):
        raise UserError(
            f"{root}: was made from base '{package.base}', which does not ship with efface; give it with --base"
        )
    loaded = load_base(base or package.base, device)
    if loaded.fingerprint != package.base_id:
        raise UserError(
            f"base '{loaded.spec.name}' ({loaded.fingerprint[:16]}) is not the one that the package was made from "
            f"({package.base_id[:16]}); give it with --base"
        )
    checks, sampled = [], [model for model in package.models if model.sample]
    on_progress("images made again", 0, len(sampled))
    for model in sampled:
        checks.append(_check(root, model, loaded, package.recipe))
        on_progress("images made again", len(checks), len(sampled))
    return Verification(len(found), (), (), tuple(checks))


def _check(root: Path, model: PackagedModel, base: Base, recipe: Recipe) -> SampleCheck:
    assert model.sample
    base.swap(Delta.load(_inside(root, model.delta)))
    (image,) = sample(base, recipe, [ImageRequest(model.sample.prompt, model.sample.seed)])
    expected = _pixels(_inside(root, model.sample.file))
    if image.shape != expected.shape:
        return SampleCheck(model.name, 255.0, False)
    difference = float(np.abs(image.astype(np.int16) - expected.astype(np.int16)).mean())
    return SampleCheck(model.name, difference, pixel_sha256(image) == model.sample.image_sha256)


def _pixels(path: Path) -> np.ndarray:
    """(H, W, 3), uint8. Raises UserError where the file is no image."""
    try:
        check_plain(path)
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"{path}: is no image that can be read, should be the PNG of a model") from None


def _inside(root: Path, name: str) -> Path:
    """A file of the package. Raises UserError where its name leads out of it."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UserError(f"{root / DESCRIPTION}: '{name}' leads out of the package")
    return path
