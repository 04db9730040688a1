"""What presets that claim to be the authors' command or settings say, against the authors' own files.

Each row cites the file of the authors' repository (its commit is in docs/fidelity.md, or the newest of November 2026)
and has the facts as they stand there; what ours should be is worked out here.
"""

import re
from typing import Any

import pytest

from efface.config_files import CONFIGS
from efface.train.method import parse_config

GPUS = 2
"""Concept Ablation's README recommends two, or as many samples on one."""


def ablation(rate: float, batch: int, steps: int, prior: bool, **others: Any) -> dict[str, Any]:
    """diffusers/train.py: --scale_lr multiplies the rate by processes and batch, and by 2 with a prior."""
    scaled = rate * GPUS * batch * (2 if prior else 1)
    return {
        "effective_learning_rate": pytest.approx(scaled),
        "samples_seen": steps * batch * GPUS,
        "batch_size": batch * GPUS,
        "prior_weight": 1.0 if prior else 0.0,
        "masked_loss": True,  # the script's loss is over a mask of one channel, whatever the arguments
        **others,
    }


AUTHORS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("ca", "authors"): (
        "concept-ablation diffusers/README.md, Ablating Style: --train_batch_size=4 --learning_rate=2e-6 "
        "--max_train_steps=100 --scale_lr --hflip --noaug",
        ablation(2e-6, 4, 100, False, group="kv-xattn", augment="flip"),
    ),
    ("ca", "authors-objects"): (
        "the same, Ablating Instances: without --noaug",
        ablation(2e-6, 4, 100, False, group="kv-xattn", augment="zoom"),
    ),
    ("ca", "nudity"): (
        "the same, nudity: --train_batch_size=4 --learning_rate=4e-6 --max_train_steps=400 --num_class_prompts 1000 "
        "--scale_lr --hflip --parameter_group attn --with_prior_preservation --noaug; 1000 class images by default",
        ablation(4e-6, 4, 400, True, group="attn", augment="flip", anchor_prompts=1000, anchor_images=1000),
    ),
    ("ca", "memorised"): (
        "the same, Ablating Memorized Image: --with_prior_preservation --prior_loss_weight=1.0 --train_batch_size=2 "
        "--learning_rate=5e-7 --max_train_steps=400 --scale_lr --hflip --parameter_group full-weight",
        ablation(5e-7, 2, 400, True, group="full", augment="zoom", target_captions="phrase"),
    ),
    ("esd", "authors"): (
        "erasing esd_sd.py: --iterations 200, --lr 5e-5, --negative_guidance 2 (eta 1 here), bfloat16, 1024 px, esd-x",
        {"steps": 200, "learning_rate": 5e-5, "eta": 1.0, "size": 1024, "precision": "bf16", "scheduler": "pndm"}
        | {"on_policy": False, "variant": "x", "prompts": ("{name}",)},
    ),
    ("esd", "newer-script"): (
        "the same, of which it is the length, rate and roll-outs",
        {"steps": 200, "learning_rate": 5e-5, "eta": 1.0, "precision": "bf16", "on_policy": False},
    ),
    ("uce", "authors"): (
        "unified-concept-editing trainscripts/uce_sd_erase.py: --erase_scale 1, --preserve_scale 1, --lamb 0.5",
        {"ridge": 0.5, "erase_scale": 1.0, "preserve_scale": 1.0, "tokens": "last-subject", "guide": ""}
        | {"guides": {"style": "art"}, "preserve": "none", "empty_prompt": "start"},
    ),
    ("uce", "older-code"): (
        "train-scripts/train_erase.py at 35e91e2: lamb=0.5, erase_scale=1, preserve_scale=max(0.1, 1/n), all tokens",
        {"ridge": 0.5, "erase_scale": 1.0, "preserve_scale": None, "tokens": "all"},
    ),
    ("rece", "authors"): (
        "RECE train.py and its README: --lamb 0.1 --preserve_scale 0.1 for the epochs; UCE's own 0.5 before; objects: "
        "one epoch, regular_scale 1e-3",
        {
            "epochs": 1,
            "attack_ridge": 1e-3,
            "refine_ridge": 0.1,
            "refine_preserve_scale": 0.1,
            "refine_erase_scale": 1.0,
        }
        | {"ridge": 0.5, "guide": "", "preserve": "none"},
    ),
    ("fade", "authors"): (
        "FADE fade/configs/blue_jay: iterations 500, lr 1e-4, batch_size 4, warmup 500, weights 1000, 50, 3",
        {"steps": 500, "learning_rate": 1e-4, "batch_size": 4, "warmup_steps": 500, "guidance_weight": 1000.0}
        | {"adjacent_weight": 50.0, "erase_weight": 3.0, "mode": "code"},
    ),
    ("fade", "paper"): (
        "the same with the mean of five neighbours for their sum: 5 x 50",
        {"adjacent_weight": 250.0, "erase_weight": 3.0, "guidance_weight": 1000.0, "mode": "paper"},
    ),
    ("mace", "objects"): (
        "MACE configs/object/erase_bird.yaml: learning_rate 1e-5, max_train_steps 50, lamb 10, train_preserve_scale 0, "
        "fuse_preserve_scale 0, preserve_weight 0, rank 1",
        {"learning_rate": 1e-5, "steps": 50, "ridge": 10.0, "general_weight": 0.0, "retained_weight": 0.0, "rank": 1},
    ),
    ("sld", "weak"): (
        "safe-latent-diffusion SafetyConfig.WEAK, as in the paper",
        dict(zip(("warm_up", "scale", "threshold", "momentum", "beta"), (15, 200, 0.0, 0.0, 0.0), strict=True)),
    ),
    ("sld", "medium"): (
        "SafetyConfig.MEDIUM",
        dict(zip(("warm_up", "scale", "threshold", "momentum", "beta"), (10, 1000, 0.01, 0.3, 0.4), strict=True)),
    ),
    ("sld", "strong"): (
        "SafetyConfig.STRONG",
        dict(zip(("warm_up", "scale", "threshold", "momentum", "beta"), (7, 2000, 0.025, 0.5, 0.7), strict=True)),
    ),
    ("sld", "max"): (
        "SafetyConfig.MAX",
        dict(zip(("warm_up", "scale", "threshold", "momentum", "beta"), (0, 5000, 1.0, 0.5, 0.7), strict=True)),
    ),
    ("safree", "artists"): (
        "SAFREE models/modified_stable_diffusion_pipeline.py, f_beta: t = 5.5, k = 3.5 for artists",
        {"midpoint": 5.5, "slope": 3.5},
    ),
    ("speed", "many"): (
        "SPEED README.md, 10-Celebrity Erasure: --retain_scale 0.05 --disable_filter",
        {"ridge": 0.05, "filter": False},
    ),
    ("oce", "styles"): (
        "OCE trainscripts, styles: erase 500, global 10, preserved 1, lamb 10",
        {"erase_scale": 500.0, "general_scale": 10.0, "preserve_scale": 1.0, "ridge": 10.0},
    ),
    ("eap", "noxattn"): (
        "Erasing-Adversarial-Preservation, nudity: noxattn, 50 centres of the 2000 nearest words",
        {"group": "noxattn", "nearest": 2000, "centres": 50},
    ),
    ("age", "styles"): (
        "Adaptive-Guided-Erasure, art: soft, temperature 2, five of the nearest",
        {"temperature": 2.0, "mixture": "soft", "mixed": 5},
    ),
    ("salun", "objects"): (
        "Unlearn-Saliency SD/README.md: --alpha 0.5 --lr 1e-5 --epochs 5, batches of 8; 800 images are 100 of these",
        {"alpha": 0.5, "learning_rate": 1e-5, "steps": 5 * 800 // 8, "batch_size": 8},
    ),
    ("hirm", "styles"): ("HiRM, by its port erase-eval train_hirm.py: styles 20 steps", {"steps": 20}),
    ("hirm", "objects"): ("the same: objects 15", {"steps": 15}),
    ("fmn", "inversion"): (
        "Forget-Me-Not configs/ti.yaml and attn.yaml: max_train_steps_ti 500; use_ti, 35 steps at 2e-6",
        {"inversion_steps": 500, "steps": 35, "learning_rate": 2e-6},
    ),
    ("uce", "debias"): (
        "uce_sd_debias.py: bare names, male and female in equal shares",
        {"templates": ("{name}",), "preserve": "none"},
    ),
}
NO_CLAIM = {
    ("spm", "facilitated"): "their way of sampling, without a number",
    ("sgrace", "objects"): "one weight of several, in docs/methods.md",
}
"""Presets that speak of the authors and are none of their commands."""
CLAIM = re.compile(r"[Tt]he authors' (?!weight of)|[Aa]s the authors|The losses as printed|as in the authors'")


@pytest.mark.parametrize(("method", "preset"), AUTHORS, ids=lambda value: value)
def test_a_preset_has_the_values_of_the_authors_files(method: str, preset: str) -> None:
    source, expected = AUTHORS[method, preset]
    config = parse_config(method, {}, preset)
    assert {name: getattr(config, name) for name in expected} == expected, source


def test_every_preset_that_claims_to_be_theirs_is_in_the_table() -> None:
    claiming = set()
    for path in sorted((CONFIGS / "methods").glob("*/*.yaml")):
        header = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
        if CLAIM.search(header) and path.stem != "miniature":
            claiming.add((path.parent.name, path.stem))
    assert claiming <= AUTHORS.keys() | NO_CLAIM.keys()
    assert len(claiming) > 20
