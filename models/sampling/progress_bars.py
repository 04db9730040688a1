"""The progress bars of transformers and diffusers, which would run through the lines of a log."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading and saving in silence; afterwards the bars are as they were."""
    import diffusers
    import transformers

    libraries = (transformers.utils.logging, diffusers.utils.logging)
    enabled = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in enabled:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in enabled:
            library.enable_progress_bar()
