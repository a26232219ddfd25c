"""How every command line of this project ends: expected failures are one line on stderr and exit status 2."""

import os
import sys
import traceback
from collections.abc import Callable

from und3rstand_jax.errors import UserError

EXIT_FAILED = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def run_command(main: Callable[[], None], debug: bool) -> int:
    """Runs a command and returns its exit status.

    A `UserError`, and any `OSError` (full disk, missing permission, no network), ends in `error: …` on stderr and
    status 2; `debug` prints the traceback before it. Ctrl-C ends in status 130, as a shell expects, and a reader that
    goes away (`… | head`) in 141. Anything else is a bug and propagates with its traceback.
    """
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, which would fail again, loudly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (UserError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _one_line(error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return str(error)
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    where = f": {error.filename}" if error.filename is not None else ""
    return f"{error.strerror}{where}"
