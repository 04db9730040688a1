"""The backends that attention can be computed by, and which of them is: without torch, for records and tables."""

from typing import Literal

from efface.config_files import StrictModel

Backend = Literal["auto", "sdpa", "xformers", "cudnn", "flash"]


class AttentionInUse(StrictModel):
    """The kernel that was asked for, and what computes the attention."""

    requested: Backend
    used: Backend
    processors: dict[str, int]
    """How many there are, by the name of the class."""
    milliseconds: dict[str, float] | None
    """Of a pass, by backend; None where none was timed."""
