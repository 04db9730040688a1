"""A pool of rendered scenes on disk, made once and read by every training stage."""

import multiprocessing
from pathlib import Path

import numpy as np

from efface.miniature.progress import track
from efface.miniature.world import Scene, draw_scene, empty_scene, labels, render

POOL_SEED, EMPTY_SEED = 1, 2


def pool_scenes(count: int) -> list[Scene]:
    return [draw_scene(POOL_SEED, index) for index in range(count)]


def empty_scenes(count: int) -> list[Scene]:
    return [empty_scene(EMPTY_SEED, index) for index in range(count)]


def render_all(scenes: list[Scene], title: str, processes: int = 2) -> np.ndarray:
    """Pictures of the scenes, uint8 of shape (scenes, 64, 64, 3), drawn by a few processes where there are many."""
    if len(scenes) < 1000:
        return np.stack([render(scene) for scene in scenes])
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        pictures = workers.imap(render, scenes, chunksize=64)
        return np.stack(list(track(pictures, title, len(scenes))))


def load_pool(folder: Path, name: str, scenes: list[Scene]) -> np.ndarray:
    """The pictures of `scenes`, from `folder/name.npy` if a build left them there."""
    path = folder / f"{name}.npy"
    if path.exists():
        return np.load(path)
    pictures = render_all(scenes, f"render {name}")
    folder.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("wb") as file:
        np.save(file, pictures)
    path.with_suffix(".part").replace(path)
    return pictures


def label_table(scenes: list[Scene]) -> np.ndarray:
    """Labels of the scenes, float32 of shape (scenes, concepts)."""
    return np.stack([labels(scene) for scene in scenes])
