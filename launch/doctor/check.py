"""What a check of `efface doctor` tells."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class CheckResult:
    """One thing that was checked: how it is, and for anything but `ok` what to do about it, in one sentence each."""

    name: str
    status: Status
    message: str
    remedy: str = ""
