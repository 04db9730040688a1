"""What a training measures of itself, as it stands in records and beside deltas."""

from typing import Any

from pydantic import BaseModel


class TrainingMetrics(BaseModel):
    """Nothing of a delta that was made elsewhere."""

    losses: list[float] = []
    """Of each optimiser step."""
    seconds: float | None = None
    """Of the training itself."""
    samples_seen: int | None = None
    attention: dict[str, Any] | None = None
    """What `models.attention.set_attention` reports of the student; None where no attention was named."""
