"""`efface quality`: CLIP score, FID and KID of a run's images, beside ERR and no part of it."""

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import UserError
from efface.files import as_path
from efface.launch.arguments.options import DeviceOption
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line, print_table

if TYPE_CHECKING:
    from efface.eval.report.reported_run import RunContent

CLIP = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """CLIP score, FID and KID of what each method makes of prompts that it should leave alone, beside the base."""

    run: Annotated[str, typer.Argument(help="A run folder.", metavar="RUN")]
    clip: Annotated[
        str, typer.Option(help="A CLIP model for the CLIP score, a folder or hub id; '': no CLIP score.")
    ] = CLIP
    features: Annotated[
        str, typer.Option(help="A CLIP model or image classifier whose features FID and KID compare.")
    ] = CLIP
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class QualityRow:
    """Of one method. FID and KID are to the base's images of the same prompts and seeds; none of the base itself."""

    method: str
    images: int
    clip_score: float | None
    fid: float | None
    kid: float | None


@dataclass(frozen=True)
class Quality:
    """What was measured, and by which models."""

    rows: list[QualityRow]
    clip: str
    features: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run(options: QualityOptions) -> Quality:
    """From the images that the run has kept. Raises UserError where a model cannot be loaded, or images are missing."""
    import numpy as np

    from efface.cluster.run_content import read_run
    from efface.eval.image_quality import ClipScore, frechet_distance, kernel_distance
    from efface.eval.scores.scoring import BASE
    from efface.launch.arguments.device import resolve_device
    from efface.models.image_encoders import load_image_encoder

    content = read_run(as_path(options.run))
    kept = _kept_images(content)
    of_base = {(prompt, seed): hash for (prompt, seed, _), hash in kept.get(BASE, {}).items()}
    if not of_base:
        raise UserError(f"{options.run}: has no images of the base, which the others are compared with")
    device = resolve_device(options.device)
    score = ClipScore(options.clip, device) if options.clip else None
    encode = load_image_encoder(options.features, device)
    wanted = {hash for hashes in kept.values() for hash in hashes.values()}
    images = {hash: _pixels(png) for hash, png in content.images() if hash in wanted}
    rows = []
    for method in sorted(kept, key=lambda method: method != BASE):
        keys = [key for key, hash in kept[method].items() if hash in images and of_base.get(key[:2]) in images]
        if len(keys) < 2:
            raise UserError(f"{options.run}: has fewer than two images of '{method}' that the base has too")
        pictures = np.stack([images[kept[method][key]] for key in keys])
        reference = np.stack([images[of_base[key[:2]]] for key in keys])
        scores = score(pictures, [prompt for prompt, _, _ in keys]) if score else []
        features = None if method == BASE else (encode(reference), encode(pictures))
        rows.append(
            QualityRow(
                method=method,
                images=len(keys),
                clip_score=float(np.mean(scores)) if scores else None,
                fid=frechet_distance(*features) if features else None,
                kid=kernel_distance(*features) if features else None,
            )
        )
    return Quality(rows, options.clip, options.features)


def _kept_images(content: "RunContent") -> dict[str, dict[tuple[str, int, str], str]]:
    """By method, the hash of the image of each prompt, seed and model on the axes that score presence."""
    from efface.concepts.prompts import KEPT_AXES

    found: dict[str, dict[tuple[str, int, str], str]] = {}
    for row in content.table.to_pylist():
        if row["axis"] in KEPT_AXES and row["image_error"] is None:
            found.setdefault(row["method"], {})[row["prompt"], row["seed"], row["model_id"]] = row["image_sha256"]
    return found


def _pixels(png: bytes) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def show(quality: Quality) -> None:
    header = ("method", "images", "CLIP score", "FID", "KID")
    rows = [
        (row.method, row.images, *(None if x is None else f"{x:.4g}" for x in (row.clip_score, row.fid, row.kid)))
        for row in quality.rows
    ]
    print_table(header, rows)
    print_line(
        f"images of adjacent and retained concepts; FID and KID are to the base's, by features of {quality.features}: "
        "compare them with numbers of the same features and as many images alone"
    )


COMMAND = Command("quality", QualityOptions, run, show, as_json=Quality.as_json)
