"""Image encoders: CLIP's image embedding, a classifier's pooled features, and their own preprocessing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from efface.errors import UserError
from efface.models.image_encoders import load_image_encoder

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PREPROCESSING = {
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 56, 3), dtype=np.uint8)


def write(model: torch.nn.Module, folder: Path, preprocessing: dict[str, object] = PREPROCESSING) -> str:
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return str(folder)


def clip() -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(**size, image_size=32, patch_size=8, projection_dim=12)
    ).eval()


def resnet() -> ResNetForImageClassification:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config).eval()


def reference_pixels(images: np.ndarray) -> torch.Tensor:
    processor = CLIPImageProcessorPil(**PREPROCESSING)
    return processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]


def test_a_clip_gives_its_projected_image_embedding(tmp_path: Path) -> None:
    model = clip()
    features = load_image_encoder(write(model, tmp_path), "cpu")(IMAGES)
    assert (features.shape, features.dtype) == ((5, 12), torch.float32)
    with torch.no_grad():
        expected = model(reference_pixels(IMAGES)).image_embeds
    # PIL and torch resize by the same filter with other roundings.
    torch.testing.assert_close(features, expected, atol=0.02, rtol=0.02)


def test_a_classifier_gives_what_its_last_layer_reads(tmp_path: Path) -> None:
    model = resnet()
    images = IMAGES[:, :32, :32]  # no resizing: exact
    features = load_image_encoder(write(model, tmp_path), "cpu")(images)
    assert features.shape == (5, 16)
    with torch.no_grad():
        logits = model(reference_pixels(images)).logits
        torch.testing.assert_close(model.classifier(features), logits, atol=1e-5, rtol=1e-5)


def test_a_transformer_without_pooling_gives_its_first_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(**size, image_size=32, patch_size=8, num_labels=3)).eval()
    preprocessing = {**PREPROCESSING, "size": {"height": 32, "width": 32}, "do_center_crop": False}
    images = IMAGES[:, :32, :32]
    features = load_image_encoder(write(model, tmp_path, preprocessing), "cpu")(images)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(features), model(reference_pixels(images)).logits)


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    spec = write(resnet(), tmp_path)
    one, all_at_once = (load_image_encoder(spec, "cpu", batch_size=size)(IMAGES) for size in (1, 5))
    torch.testing.assert_close(one, all_at_once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "gone"),
    [(clip, "visual_projection.weight"), (resnet, "resnet.encoder.stages.1.layers.0.layer.1.convolution.weight")],
)
def test_an_encoder_that_lacks_weights_is_not_completed_at_random(
    tmp_path: Path, make: Callable[[], torch.nn.Module], gone: str
) -> None:
    spec = write(make(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"the weights lack {gone}"):
        load_image_encoder(spec, "cpu")


def test_a_classifier_without_its_last_layer_is_an_encoder_still(tmp_path: Path) -> None:
    spec = write(resnet(), tmp_path)
    before = load_image_encoder(spec, "cpu")(IMAGES)
    tensors = load_file(tmp_path / "model.safetensors")
    without = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    assert len(without) < len(tensors)
    save_file(without, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_image_encoder(spec, "cpu")(IMAGES), before)


def test_an_adapter_beside_an_encoder_is_refused(tmp_path: Path) -> None:
    spec = write(clip(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match="is an adapter of another model"):
        load_image_encoder(spec, "cpu")


def test_code_of_an_encoders_own_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would prompt on the terminal whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    spec = write(clip(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config | own))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="names code of its own"):
        load_image_encoder(spec, "cpu")
    assert not (tmp_path / "ran").exists()


def test_something_else_is_a_users_mistake(tmp_path: Path, tiny_base_folder: Path) -> None:
    with pytest.raises(UserError, match="neither a CLIP nor an image classifier"):
        folder = tmp_path / "text"
        folder.mkdir()
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
        (folder / "config.json").write_text((tiny_base_folder / "text_encoder" / "config.json").read_text())
        load_image_encoder(str(folder), "cpu")


@pytest.mark.parametrize("fault", [{"image_mean": None}, {"resample": 1}, {"size": {"width": 3}}])
def test_an_unknown_preprocessing_is_a_users_mistake(tmp_path: Path, fault: dict[str, object]) -> None:
    spec = write(resnet(), tmp_path, {**PREPROCESSING, **fault})
    with pytest.raises(UserError, match=r"preprocessor_config\.json: not a preprocessing"):
        load_image_encoder(spec, "cpu")


def test_a_missing_folder_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load_image_encoder("nobody/nothing", "cpu")
