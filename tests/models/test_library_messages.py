"""What other libraries say as they are imported, and what of it is shown."""

import logging

import pytest

import efface.models  # noqa: F401


@pytest.mark.parametrize(
    ("logger", "harmless"),
    [
        (
            "transformers.utils.import_utils",
            "`CLIPImageProcessor` requires torchvision (not installed); falling back to `CLIPImageProcessorPil` for",
        ),
        ("DeepSpeed", "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."),
    ],
)
def test_what_looks_like_a_fault_and_is_none_is_hidden_and_nothing_else(
    logger: str, harmless: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = logging.getLogger(logger)
    monkeypatch.setattr(found, "handlers", [caplog.handler])
    found.warning(harmless)
    assert not caplog.records
    found.warning("something is wrong")
    assert {record.getMessage() for record in caplog.records} == {"something is wrong"}
