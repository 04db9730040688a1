"""Seeds of random numbers by what they are for, so that no two uses draw the same ones."""

import hashlib


def derived_seed(purpose: str, *parts: str | int) -> int:
    """A generator's seed for one purpose, in [0, 2^56); far from that of any other purpose or parts."""
    digest = hashlib.sha256(" ".join(map(str, (purpose, *parts))).encode()).digest()
    return int.from_bytes(digest[:7], "big")
