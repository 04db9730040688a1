"""How good the saved base and judge are, measured on renders and prompts that training never saw.

Two questions: does the judge see what is there (on fresh renders, on their VAE reconstructions, on pictures of
nothing), and does the base draw what it is asked for (by name, by alias, by description)?
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import ResNetForImageClassification

from efface.miniature.pool import label_table
from efface.miniature.progress import Meter
from efface.miniature.prompts import alias_prompts, direct_prompts, indirect_prompts
from efface.miniature.train_judge import OBJECT_LABELS, STYLE_LABELS, probabilities
from efface.miniature.train_vae import decode, encode
from efface.miniature.vocabulary import CONCEPTS, NAMES, Words
from efface.miniature.world import draw_scene, empty_scene, render
from efface.models.base import Base, load_base
from efface.models.recipe import Recipe, load_recipe
from efface.models.sampling.sampler import ImageRequest, sample

FRESH_SEED = 99
BARS = {
    "judge_on_renders": 0.99,
    "judge_on_reconstructions": 0.99,
    "direct": 0.97,
    "direct_worst_concept": 0.90,
    "alias": 0.90,
    "indirect": 0.80,
    "styles": 0.90,
}


def load_judge(folder: Path, device: torch.device) -> ResNetForImageClassification:
    """The saved judge in float32."""
    judge = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return judge.to(device).eval()


def judge_quality(judge: ResNetForImageClassification, base: Base, count: int) -> dict[str, float]:
    """Share of fresh pictures whose object labels and style labels are both all right, at threshold 0.5."""
    scenes = [draw_scene(FRESH_SEED, index) for index in range(count)]
    renders = np.stack([render(scene) for scene in scenes])
    truth = label_table(scenes) > 0.5
    empty = [empty_scene(FRESH_SEED, index) for index in range(count // 4)]
    grounds = np.stack([render(scene) for scene in empty])
    on_renders = probabilities(judge, renders) > 0.5
    on_copies = probabilities(judge, decode(base.vae, encode(base.vae, renders)[0])) > 0.5
    noise = np.random.default_rng(FRESH_SEED).integers(0, 256, size=(count // 4, 64, 64, 3), dtype=np.uint8)
    latents = torch.randn(count // 4, 4, 8, 8, generator=torch.Generator().manual_seed(FRESH_SEED))
    garbage = decode(base.vae, latents / base.vae.config.scaling_factor)

    def right(seen: np.ndarray, part: slice) -> float:
        return float((seen[:, part] == truth[:, part]).all(axis=1).mean())

    def silent(pictures: np.ndarray) -> float:
        return float((probabilities(judge, pictures)[:, OBJECT_LABELS] < 0.5).all(axis=1).mean())

    return {
        "renders_objects": right(on_renders, OBJECT_LABELS),
        "renders_styles": right(on_renders, STYLE_LABELS),
        "reconstructions_objects": right(on_copies, OBJECT_LABELS),
        "reconstructions_styles": right(on_copies, STYLE_LABELS),
        "absent_on_empty_grounds": silent(grounds),
        "absent_on_noise": silent(noise),
        "absent_on_decoded_noise": silent(garbage),
    }


def prompt_quality(
    base: Base,
    judge: ResNetForImageClassification,
    prompts_of: Callable[[Words], list[str]],
    images: int,
    recipe: Recipe,
    title: str,
) -> dict[str, float]:
    """Per concept: the share of pictures, over its prompts and `images` seeds each, in which the judge sees it."""
    rows = [(w.name, prompt, seed) for w in CONCEPTS for prompt in prompts_of(w) for seed in range(images)]
    with Meter(title, len(rows)) as meter:
        done = 0

        def count(finished: int) -> None:
            nonlocal done
            done += finished
            meter.update(done)

        requests = [ImageRequest(prompt, 1000 * seed + number) for number, (_, prompt, seed) in enumerate(rows)]
        pictures = sample(base, recipe, requests, count)
    seen: dict[str, list[bool]] = {name: [] for name in NAMES}
    for (name, _, _), row in zip(rows, probabilities(judge, pictures), strict=True):
        seen[name].append(bool(row[NAMES.index(name)] > 0.5))
    return {name: float(np.mean(verdicts)) for name, verdicts in seen.items()}


def measure(out: Path, device: torch.device, renders: int = 2000, images: int = 4) -> dict:
    """Every number of the card, for the model and the judge saved in `out`."""
    recipe = load_recipe("miniature")
    base, judge = load_base(out / "model", device), load_judge(out / "judge", device)
    judged = judge_quality(judge, base, renders)
    direct = prompt_quality(base, judge, direct_prompts, images, recipe, "direct prompts")
    alias = prompt_quality(base, judge, alias_prompts, 2 * images, recipe, "alias prompts")
    indirect = prompt_quality(base, judge, indirect_prompts, images, recipe, "indirect prompts")
    styles = [words.name for words in CONCEPTS if words.kind == "style"]
    summary = {
        "judge_on_renders": min(judged["renders_objects"], judged["renders_styles"]),
        "judge_on_reconstructions": min(judged["reconstructions_objects"], judged["reconstructions_styles"]),
        "direct": float(np.mean(list(direct.values()))),
        "direct_worst_concept": min(direct.values()),
        "alias": float(np.mean(list(alias.values()))),
        "indirect": float(np.mean(list(indirect.values()))),
        "styles": float(np.mean([direct[name] for name in styles])),
    }
    return {
        "recipe": recipe.model_dump(),
        "counts": {"renders": renders, "images_per_prompt": images},
        "bars": BARS,
        "summary": summary,
        "judge": judged,
        "concepts": {
            name: {"direct": direct[name], "alias": alias[name], "indirect": indirect[name]} for name in NAMES
        },
        "parameters": {
            "unet": count_parameters(base.unet),
            "vae": count_parameters(base.vae),
            "text_encoder": count_parameters(base.text_encoder),
            "judge": count_parameters(judge),
        },
    }


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
