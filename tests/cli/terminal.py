"""Commands on a pseudo-terminal, as a person runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

_SETTINGS = ("COLUMNS", "NO_COLOR", "FORCE_COLOR")
_LONGEST = 300  # seconds, after which a command is killed


def on_a_terminal(
    *args: object, columns: int = 80, stop_at: str | None = None, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a command on a terminal; press Ctrl-C once a text appears, which goes to the processes that it started, too.

    Args:
        args: the command line.
        columns: width of the terminal.
        stop_at: the text.
        environment: variables to set; those that change output are unset.

    Returns:
        The exit status, and everything that the terminal got, with escape sequences.
    """
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    rest = {key: value for key, value in os.environ.items() if key not in _SETTINGS}
    command = [sys.executable, "-m", "onnxprune", *map(str, args)]
    variables = rest | {"TERM": "xterm-256color"} | (environment or {})

    def started() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of shells ignore it
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=started,
        start_new_session=True,
        env=variables,
    )
    os.close(slave)
    (limit := threading.Timer(_LONGEST, process.kill)).start()
    text, stopped = "", False
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the other end was closed
            break
        if not chunk:
            break
        text += chunk.decode(errors="replace")
        if stop_at is not None and not stopped and stop_at in text:
            os.write(master, b"\x03")
            stopped = True
    os.close(master)
    limit.cancel()
    return process.wait(timeout=60), text


def shown(text: str) -> str:
    """Return what a terminal got without escape sequences and the echo of Ctrl-C."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\^C", "", text)
