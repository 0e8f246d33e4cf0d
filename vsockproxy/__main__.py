"""The program's entry, for the script `vsockproxy` and for ``python -m vsockproxy``.

It imports nothing that takes time before the daemon's signals are held: the imports of the
commands are most of the start, and a signal at that time would end the daemon.
"""

import gc
import os
import sys

from vsockproxy.daemon import early_signals

_DAEMONS = ("run", "forward")


def main() -> None:
    """Run the `vsockproxy` program."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    if command in _DAEMONS:
        early_signals.hold()
        # What a start makes is kept, so nothing is found. `cli.run` has it enabled when it is over.
        gc.disable()
    if sys.argv[1:] == ["health"] and sys.stdout and sys.stderr:
        # A container asks every few seconds, without options: the command line is most of it.
        from vsockproxy.admin.health_client import check  # noqa: PLC0415 - see above

        sys.exit(check(os.environ))
    from vsockproxy.cli import main as run  # noqa: PLC0415 - see above

    run()


if __name__ == "__main__":
    main()
