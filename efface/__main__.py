"""`efface` and `python -m efface`: the command line, from its first moment on.

Ctrl-C ends in a sentence and exit code 130 also while modules are being imported, when nothing has begun.
"""

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> None:
    """Run the command line; the exit codes are those of `efface.launch.cli.main`."""
    _open_standard_streams()
    heeds_interrupts = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    interrupts: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if heeds_interrupts:
        signal.signal(signal.SIGINT, leave)
    from efface.launch.cli import main as command_line

    try:
        if heeds_interrupts:
            signal.signal(signal.SIGINT, interrupt)
        command_line()
    except KeyboardInterrupt:
        leave()
    except Exception:
        if interrupts:  # an import that was interrupted may say so by an error of its own
            leave()
        raise
    finally:
        if heeds_interrupts:
            signal.signal(signal.SIGINT, leave)


def leave(number: int = signal.SIGINT, frame: object = None) -> NoReturn:
    """End this process at once."""
    try:
        os.write(2, b"efface: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _open_standard_streams() -> None:
    """Where one was closed by the caller, open it on nothing: else the next file that is opened would take its place,
    and whatever is printed would go there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
