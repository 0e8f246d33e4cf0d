"""The program: its help, its commands by name, and its completion.

Owns: the table of the commands.  Imports click and nothing else that takes time: the help of the
program and the completion of a command's name import no command, and a command imports its own
module only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import PurePath
from typing import Any, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from vsockproxy import __version__

_HELP: Final = """\
Relay byte streams between TCP and vsock, in both directions.

\b
Examples:
  vsockproxy forward 8080 3:80       relay local port 8080 to port 80 of CID 3
  vsockproxy run vsockproxy.toml     run every route of a file until SIGTERM
  vsockproxy check vsockproxy.toml   validate a file and show its routes
  vsockproxy health                  test whether the daemon is ready
  vsockproxy doctor                  find problems and their remedies
  vsockproxy connect 3:22            join stdin and stdout to port 22 of CID 3
  vsockproxy probe 3:80              test whether port 80 of CID 3 answers
  vsockproxy guests                  list guests and this machine's VMs
  vsockproxy demo                    try vsockproxy without a VM

\b
Addresses:
  8080  tcp:HOST:PORT                TCP; a port alone is on the loopback
  3:80  vsock:CID:PORT  vsock::PORT  AF_VSOCK; an empty CID listens on any
  vsock-mux:PATH:PORT                a VMM's socket, such as Firecracker's
  unix:PATH  unix:@NAME  fd:NAME     a Unix socket; a socket from systemd
"""

SHELLS: Final = ("bash", "zsh", "fish")
FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130
"""Exit statuses: a failure or forced end; a wrong configuration or command line; SIGINT."""

COMMANDS: Final = {
    "run": ("run", "Run the daemon from a file or $VSOCKPROXY_FORWARD."),
    "forward": ("run", "Run the daemon from pairs of addresses."),
    "demo": ("run", "Run the daemon with an embedded guest, without a VM."),
    "connect": ("connect", "Join standard input and output to a target."),
    "ssh-config": ("connect", "Print lines for ssh_config."),
    "check": ("check", "Show a file's routes, or all of its problems."),
    "version": ("check", "Show the version, and which pump runs and why."),
    "health": ("check", "Ask the running daemon whether it is ready."),
    "doctor": ("diagnose", "Find problems of this machine and their remedies."),
    "probe": ("diagnose", "Dial a target and explain the result."),
    "cid": ("diagnose", "Show the vsock CID of this machine."),
    "guests": ("guests", "Show guests' addresses, and the VMs of this machine."),
    "status": ("control", "Show the daemon and its routes."),
    "connections": ("control", "List live connections."),
    "kill": ("control", "End live connections."),
    "pause": ("control", "Pause routes: new clients are queued."),
    "drain": ("control", "Close routes' listeners, keep their connections."),
    "resume": ("control", "Resume paused or drained routes."),
    "reload": ("control", "Reload the configuration."),
    "log-level": ("control", "Change what the daemon logs."),
    "route": ("change", "Add, replace or remove a route at run time."),
    "guest": ("change", "Add, replace or remove a guest at run time."),
    "top": ("top", "Watch the daemon's traffic full-screen."),
    "help": ("help", "Show the help of a command."),
}
"""The module of each command, and its line in the program's help; in the order of that help."""


class Unloaded(click.Command):
    """A command whose module has not been imported: its name and its line of help."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = module

    def load(self) -> click.Command:
        """Import the module and return the command."""
        module = import_module(f"vsockproxy.cli.{self.module}")
        command = getattr(module, str(self.name).replace("-", "_"))
        assert isinstance(command, click.Command)
        command.short_help = self.short_help
        return command


class Program(click.Group):
    """The program."""

    def every_command(self) -> Mapping[str, click.Command]:
        """Return every command by its name, in the order of --help; imports them all."""
        context = click.Context(self)
        found = {name: self.get_command(context, name) for name in self.commands}
        return {name: command for name, command in found.items() if command}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands, in the order of --help."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, from its module; None if there is no such command."""
        found = super().get_command(ctx, cmd_name)
        if isinstance(found, Unloaded):
            found = self.commands[cmd_name] = found.load()
        return found

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the line of each command; click's own method would import them all."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.short_help or "") for name, command in self.commands.items()]
            )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name or an option; click's own method would import every command."""
        names = [
            CompletionItem(name, help=command.short_help)
            for name, command in self.commands.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it with the status that a shell gives to SIGINT."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def completion(shell: str) -> str:
    """Return the script that completes the program in one of `SHELLS`."""
    found = get_completion_class(shell)
    assert found is not None, shell
    script = found(app, {}, "vsockproxy", "_VSOCKPROXY_COMPLETE").source()
    # bash then completes the path in an address, as in unix:/run/x, which click knows nothing of.
    return script.replace("complete -o nosort", "complete -o default -o nosort")


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from vsockproxy.cli.output import say  # noqa: PLC0415 - at its use

        say(f"vsockproxy {__version__}")
        context.exit()


def _show_completion(context: click.Context, _option: click.Parameter, shell: str | None) -> None:
    if shell:
        click.echo(completion(shell))
        context.exit()


@click.group(
    "vsockproxy",
    cls=Program,
    help=_HELP,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    "-V",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option(
    "--show-completion",
    type=click.Choice(SHELLS),
    is_flag=False,
    flag_value=PurePath(os.environ.get("SHELL", "")).name,
    metavar="[SHELL]",
    is_eager=True,
    expose_value=False,
    callback=_show_completion,
    help="Print the completion script for bash, zsh or fish; else for $SHELL.",
)
def app() -> None:
    """Run a command."""


for _name, (_module, _text) in COMMANDS.items():
    app.add_command(Unloaded(_name, _module, _text))
