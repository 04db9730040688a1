"""What is shipped: small, loadable as an ordinary diffusers folder, with Stable Diffusion's names, and good enough."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification

from efface.miniature import HERE, JUDGE, MODEL
from efface.miniature.measure import BARS, load_judge
from efface.miniature.pool import label_table
from efface.miniature.train_judge import OBJECT_LABELS, probabilities
from efface.miniature.vocabulary import NAMES
from efface.miniature.world import draw_scene, empty_scene, render

QUALITY = json.loads((HERE / "quality.json").read_text())


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, local_files_only=True)


def test_model_and_judge_together_stay_under_24_megabytes() -> None:
    files = [path for folder in (MODEL, JUDGE) for path in folder.rglob("*") if path.is_file()]
    assert 1_000_000 < sum(path.stat().st_size for path in files) <= 24_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".ckpt")]


def test_no_config_names_a_folder_of_the_machine_that_built_it() -> None:
    for path in [*MODEL.rglob("*config.json"), *JUDGE.glob("*.json"), MODEL / "model_index.json"]:
        values = [value for value in json.loads(path.read_text()).values() if isinstance(value, str)]
        assert not [value for value in values if "/" in value], path


def test_weights_are_stored_as_fp16_and_are_numbers() -> None:
    for path in [*MODEL.rglob("*.safetensors"), *JUDGE.rglob("*.safetensors")]:
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (safe_open is no mapping)
        assert all(tensor.dtype == torch.float16 for tensor in tensors if tensor.is_floating_point())
        assert all(tensor.isfinite().all() for tensor in tensors)


def test_the_folder_loads_with_diffusers_and_makes_a_picture(pipeline: StableDiffusionPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline("a cat", num_inference_steps=2, output_type="np").images
    assert pictures.shape == (1, 64, 64, 3) and np.isfinite(pictures).all()
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None


def test_it_does_so_without_any_argument() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a cat", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}


def test_the_text_encoder_s_tensors_are_named_as_in_stable_diffusion() -> None:
    with safe_open(MODEL / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118 (safe_open is no mapping)


def test_parameter_names_are_stable_diffusions(pipeline: StableDiffusionPipeline) -> None:
    names = set(pipeline.unet.state_dict())
    block = "transformer_blocks.0"
    for place in ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0"):
        for layer in ("attn1.to_q", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"):
            assert f"{place}.{block}.{layer}.weight" in names
    assert {"conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.2.resnets.0.conv1.weight"} <= names
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size
    assert pipeline.vae_scale_factor == 8


def test_the_schedule_is_that_of_sd_v1_4(pipeline: StableDiffusionPipeline) -> None:
    config = pipeline.scheduler.config
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (config.num_train_timesteps, config.steps_offset) == (1000, 1)
    assert config.skip_prk_steps and not config.set_alpha_to_one and not config.clip_sample


def test_the_text_encoder_pools_at_the_first_end_token(pipeline: StableDiffusionPipeline) -> None:
    ids = pipeline.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        output = pipeline.text_encoder(ids)
    assert ids[0].tolist().index(pipeline.tokenizer.eos_token_id) == 3
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 3])


def test_scaled_latents_of_renders_have_unit_variance(pipeline: StableDiffusionPipeline) -> None:
    renders = np.stack([render(draw_scene(21, index)) for index in range(200)])
    pixels = torch.from_numpy(renders).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0))
    assert float(latents.std() * pipeline.vae.config.scaling_factor) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("measured", list(BARS))
def test_the_measured_quality_meets_its_bar(measured: str) -> None:
    assert QUALITY["summary"][measured] >= BARS[measured]


def test_the_card_shows_the_measured_numbers() -> None:
    card = (HERE / "CARD.md").read_text()
    assert all(f"{value:.1%}" in card for value in QUALITY["summary"].values())


def test_the_judge_is_right_on_fresh_renders_and_silent_on_empty_grounds() -> None:
    judge = load_judge(JUDGE, torch.device("cpu"))
    scenes = [draw_scene(22, index) for index in range(200)]
    seen = probabilities(judge, np.stack([render(scene) for scene in scenes])) > 0.5
    assert (seen == (label_table(scenes) > 0.5)).all(axis=1).mean() >= 0.97
    empty = np.stack([render(empty_scene(22, index)) for index in range(60)])
    assert (probabilities(judge, empty)[:, OBJECT_LABELS] < 0.5).all(axis=1).mean() >= 0.95


def test_the_judge_loads_with_transformers_auto_classes_and_reads_pictures_as_it_was_trained() -> None:
    judge = AutoModelForImageClassification.from_pretrained(JUDGE, dtype=torch.float32).eval()
    assert [judge.config.id2label[number] for number in range(len(NAMES))] == list(NAMES)
    assert judge.config.problem_type == "multi_label_classification"
    pictures = [render(draw_scene(23, index)) for index in range(4)]
    pixels = AutoImageProcessor.from_pretrained(JUDGE)(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = judge(pixels).logits.sigmoid().numpy()
    assert np.allclose(theirs, probabilities(judge, np.stack(pictures)), atol=1e-4)
