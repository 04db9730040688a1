"""What a training measures of itself, as it stands in records and beside deltas."""

from pydantic import BaseModel

from efface.models.attention_backend import AttentionInUse


class TrainingMetrics(BaseModel):
    """Nothing of a delta that was made elsewhere."""

    losses: list[float] = []
    """Of each optimiser step."""
    seconds: float | None = None
    """Of the training itself."""
    samples_seen: int | None = None
    attention: AttentionInUse | None = None
    """Of the student; None where no attention was named."""
