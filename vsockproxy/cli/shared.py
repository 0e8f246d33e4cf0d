"""What the commands share: the form of their help, their options, and how they fail."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click
from click.core import ParameterSource

from vsockproxy.cli.output import Color, choose_color, say
from vsockproxy.cli.program import FAILED, WRONG
from vsockproxy.config.source import NoSourceError, Source, find_source
from vsockproxy.errors import ConfigError, VsockproxyError

if TYPE_CHECKING:
    from vsockproxy.address.endpoint import Target
    from vsockproxy.admin.client import Client
    from vsockproxy.config.guest import Guest

_Value = TypeVar("_Value")
_Function = TypeVar("_Function", bound=Callable[..., object])

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")


class Command(click.Command):
    """A command whose help lists its arguments in a section of that name, before its options."""

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the section of the arguments, if there are any."""
        arguments = [one for one in self.get_params(ctx) if isinstance(one, click.Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([one.get_help_record(ctx) for one in arguments])


class Argument(click.Argument):
    """An argument: only the usage line shows whether it can be omitted or repeated."""

    @property
    def human_readable_name(self) -> str:
        """Return the name in the help."""
        return self.metavar or self.name.upper()

    def make_metavar(self, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        """Return the argument in the usage."""
        name = self.human_readable_name
        if not self.required:
            name = f"[{name}]"
        elif " " in name:
            name = f"{{{name}}}"
        return name if self.nargs == 1 else f"{name}..."

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:  # noqa: ARG002 - click's
        """Return the argument's name and text in the help."""
        needed = "  [required]" if self.required else ""
        return self.human_readable_name, f"{self.help or ''}{needed}"

    def get_error_hint(self, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        """Return the argument in an error."""
        return f"'{self.metavar or self.name}'"


def command(name: str | None = None) -> Callable[[Callable[..., object]], Command]:
    """Return a decorator that makes a command of a function, by the function's name or ``name``."""
    return click.command(name, cls=Command)


def argument(name: str, **attributes: Any) -> Callable[[_Function], _Function]:
    """Return a decorator that adds an argument to a command."""
    return click.argument(name, cls=Argument, **attributes)


def command_with(
    *parameters: Callable[[Any], Any],
) -> Callable[[Callable[..., object]], Command]:
    """Like `command`, for several commands with the same arguments and options."""

    def decorate(function: Callable[..., object]) -> Command:
        for parameter in reversed(parameters):
            function = parameter(function)
        return command()(function)

    return decorate


def whole_number(text: str) -> int:
    """Return the number of an option or an argument.

    Raises: `click.BadParameter` if the text is not a whole number.
    """
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter("not a whole number") from None


PATH: Final = click.Path(path_type=Path)
CONFIGURATION: Final = click.Path(path_type=Path, readable=False)
"""A file that click does not examine: the error of reading it has the remedy."""

config_option: Final = click.option(
    "--config",
    "-c",
    type=CONFIGURATION,
    envvar="VSOCKPROXY_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="TOML or YAML; else /etc/vsockproxy/config.toml or .yaml.",
)

file_argument: Final = argument(
    "file",
    type=CONFIGURATION,
    metavar="FILE",
    required=False,
    help="The same as --config FILE.",
)

socket_option: Final = click.option(
    "--socket",
    type=PATH,
    metavar="PATH",
    help="The daemon's socket; else $VSOCKPROXY_ADMIN, [admin] socket, or the usual places.",
)

color_option: Final = click.option(
    "--color",
    type=click.Choice([str(color) for color in Color]),
    default="auto",
    show_default=True,
    expose_value=False,
    callback=lambda _context, _option, text: choose_color(Color(text)),
    help="auto obeys NO_COLOR and the terminal.",
)

json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, for programs."
)


def one_file(file: Path | None, config: Path | None) -> Path | None:
    """Return `file_argument`, else `config_option`; exit with status 2 if a user gave both."""
    given = click.get_current_context().get_parameter_source("config")
    if file is not None and given is ParameterSource.COMMANDLINE:
        fail("both FILE and --config name a configuration: omit one", status=WRONG)
    return file or config


def source_of(file: Path | None) -> Source:
    """Return the configuration that a command means; exit with status 2 where there is none."""
    return read(lambda: find_source(file, os.environ, stdin=True), (NoSourceError, ConfigError))


def seconds(option: str, text: str, parse: Callable[[object], _Value]) -> _Value:
    """Return an option's duration as parsed; exit with status 2 if it is not valid."""
    try:
        return parse(with_unit(text))
    except ValueError as error:
        fail(f"{option}: {error}", status=WRONG)


def with_unit(text: str) -> str:
    """Return an option's duration as a file has it: a number alone is in seconds."""
    return f"{text}s" if _NUMBER.fullmatch(text) else text


def read(
    make: Callable[[], _Value],
    errors: type[VsockproxyError] | tuple[type[VsockproxyError], ...] = ConfigError,
) -> _Value:
    """Return what ``make`` returns; on one of ``errors`` print its lines and exit with status 2."""
    try:
        return make()
    except errors as error:
        fail(*str(error).splitlines(), status=WRONG)


def read_target(text: str, file: Path | None) -> tuple[Target, Sequence[Guest]]:
    """Return the address, and the guests of the configuration if it names one of them.

    Raises:
      VsockproxyError: the text is not a target, or its guest is in no configuration.
    """
    from vsockproxy.address.endpoint import GuestEndpoint  # noqa: PLC0415 - at its use
    from vsockproxy.address.grammar import parse_target  # noqa: PLC0415 - at its use

    endpoint = parse_target(text)
    if not isinstance(endpoint, GuestEndpoint):
        return endpoint, ()
    from vsockproxy.config.load import forward_config  # noqa: PLC0415 - at its use

    try:
        guests = find_source(file, os.environ).table("guests")
    except NoSourceError as error:
        raise VsockproxyError(
            f"{text!r} names a guest and its port, but there is no configuration: give one with -c;"
            f" for a TCP target, write tcp:{text}"
        ) from error
    config = forward_config([("unix:@command", text)], {"guests": dict(guests)})
    return config.routes[0].targets[0], config.guests


@contextmanager
def daemon_client(
    config: Path | None, path: Path | None, timeout: float | None = None
) -> Iterator[Client]:
    """Yield a client of the daemon; an error ends the command with its message.

    ``timeout`` is in seconds; None is the client's own.
    """
    from vsockproxy.admin.client import Client, find_socket  # noqa: PLC0415 - at its use

    try:
        place = find_socket(path, config, os.environ)
        yield Client(place) if timeout is None else Client(place, timeout)
    except VsockproxyError as error:
        fail(*str(error).splitlines())


def fail(*lines: str, status: int = FAILED) -> NoReturn:
    """Print lines to stderr, each after the program's name, and exit."""
    for line in filter(None, lines):
        say(f"vsockproxy: {line}", err=True)
    sys.exit(status)
