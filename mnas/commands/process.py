"""What a command is to the system: streams that may be closed or full, signals at any moment, and
an exit status.

It is imported before everything else, because Ctrl-C may come while the rest is being imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from mnas.errors import Failure


class _Stream:
    """stdout or stderr that a full disk or a reader that has gone does not end: what is said is
    then lost, and noted.

    `lost` is the first error.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            # What is still in a buffer would be tried again, and complained about, when the
            # interpreter ends.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_streams() -> None:
    """Descriptors 0 to 2 are open, or the next file that is opened would be taken for one of
    them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.dup(number), "r" if name == "stdin" else "w"))


_interrupted = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C where nothing is to be saved. Something may swallow the exception; then it is known
    all the same."""
    global _interrupted
    if _interrupted or _importing(frame):
        os.write(2, b"error: interrupted\n" if not _interrupted else b"")
        os._exit(128 + number)
    _interrupted = True
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: nothing is written then, and modules in C++ end the
    process with a dump if an exception goes through them, or are left half-made."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _last_word(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What nobody has caught: one line for Ctrl-C, a traceback for a mistake of ours."""
    if _interrupted:
        sys.stderr.write("error: interrupted\n")
        sys.stderr.flush()
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


def prepare() -> None:
    """For the process of a tool, at its very beginning."""
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    sys.excepthook = _last_word


def run(command: Callable[[list[str]], None]) -> None:
    """A command, given the command line: what goes wrong becomes an exit status and one line."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, _ = [_Stream(stream) for stream in streams]
    try:
        message, status = _outcome(command)
        sys.stdout.flush()
        if (
            status == 0 and out.lost and not isinstance(out.lost, BrokenPipeError)
        ):  # a reader may go when it likes
            reason = f"cannot write to standard output ({out.lost.strerror})"
            message, status = f"{reason}; what was written to files is complete", 1
        if message:
            sys.stderr.write(f"error: {message}\n")  # whole, beside other processes of torchrun
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = streams
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # all is done, and the interpreter ends in a moment
    if status:
        sys.exit(status)


def _arguments() -> list[str]:
    """The command line. Raises Failure for an empty argument: nobody means one, an unset variable
    of a shell is one."""
    before = None
    for argument in sys.argv[1:]:
        flag, _, value = argument.partition("=")
        if not argument or (flag.startswith("--") and "=" in argument and not value):
            raise Failure(
                f"{flag or before or 'the first argument'} is empty; give it a value or leave it "
                "out",
                2,
            )
        before = argument
    return sys.argv[1:]


def _outcome(command: Callable[[list[str]], None]) -> tuple[str | None, int]:
    """What went wrong in a line, if something did, and the exit status."""
    from cyclopts import CycloptsError

    try:
        command(_arguments())
    except CycloptsError as error:
        found = f"{str(error).rstrip().rstrip('.')}. See --help.", 2
    except Failure as failure:
        found = str(failure), failure.status
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        found = f"{about}{error.strerror or error}; give a path that can be used", 2
    except MemoryError:
        found = "there is not enough memory; lower --batch-size or --jobs", 1
    except (KeyboardInterrupt, SystemExit):
        if not _interrupted:
            raise
        found = "interrupted", 130
    except Exception:
        if not _interrupted:  # else it may be what became of a KeyboardInterrupt
            raise
        found = "interrupted", 130
    else:
        found = (None, 0) if not _interrupted else ("interrupted", 130)
    message, status = found
    return message and " ".join(
        word if len(word) <= 500 else f"{word[:500]}..." for word in message.split()
    ), status
