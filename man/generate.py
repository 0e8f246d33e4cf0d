"""Writes the man pages, and the tables of the docs that are made from code: `make man`.

Owns: what each page is made from.  vsockproxy(1) is the commands as click has them, and the
sections of docs/operations.md that belong to no single command; vsockproxy.toml(5) is
docs/configuration.md, whose tables `keys` makes.  A test holds the pages to these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final

from man import endings, keys, roff
from vsockproxy import __version__
from vsockproxy.cli import app

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = ROOT / "man"

_VERSION: Final = f"vsockproxy {__version__}"
_OPERATIONS: Final = ("Signals", "Exit status")
_FILES: Final = {
    "/etc/vsockproxy/config.toml, /etc/vsockproxy/config.yaml": (
        "The configuration, where nothing names another one; see **vsockproxy.toml**(5)."
    ),
    "/dev/vsock": "Tells `cid` and `doctor` this machine's own CID.",
}
_BESIDE: Final = "**vsock**(7), **systemd.socket**(5), **sd_notify**(3)"


def pages() -> dict[Path, str]:
    """The text of every page, by the file that it belongs to."""
    return {
        PAGES / "vsockproxy.1": roff.page(
            "vsockproxy", 1, "carry byte streams between TCP and vsock", _VERSION, _commands()
        ),
        PAGES / "vsockproxy.toml.5": roff.page(
            "vsockproxy.toml", 5, "configuration of vsockproxy", _VERSION, _configuration()
        ),
    }


def _configuration() -> Iterator[str]:
    text = (ROOT / "docs" / "configuration.md").read_text()
    yield from roff.heading("Description")
    yield from roff.blocks(text.split("\n", 1)[1])
    yield from _see_also("**vsockproxy**(1)")


def _commands() -> Iterator[str]:
    program: Any = app
    commands = app.every_command()
    yield from roff.heading("Synopsis")
    yield from (".nh", ".ad l")
    for index, command in enumerate(commands.values()):
        if index:
            yield ".br"
        yield _synopsis(command)
    yield from (".hy", ".ad n")
    yield from roff.heading("Description")
    yield from _help(program.help)
    yield from roff.heading("Options")
    for option in program.params:
        yield from _parameter(option)
    yield from roff.heading("Commands")
    for name, command in commands.items():
        yield from roff.heading(name, 3)
        yield from _help(command.help or "")
        for parameter in command.params:
            if parameter.help:
                yield from _parameter(parameter)
    for title in _OPERATIONS:
        yield from roff.blocks(_section(title))
    yield from roff.heading("Files")
    for file, text in _FILES.items():
        yield from roff.term(roff.bold(file), roff.inline(text))
    yield from _see_also("**vsockproxy.toml**(5)")


def _see_also(first: str) -> Iterator[str]:
    yield from roff.heading("See also")
    yield from roff.paragraph(f"{first}, {_BESIDE}")


def _section(title: str) -> str:
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(rf"(?ms)^## {title}$.*?(?=^## )", text)
    assert found, title
    return found[0]


def _synopsis(command: Any) -> str:
    words = [roff.bold(f"vsockproxy {command.name}")]
    for parameter in sorted(command.params, key=_is_argument):
        written = _written(parameter, parameter.opts[:1])
        words.append(written if parameter.required else f"[{written}]")
        if parameter.nargs == -1:
            words[-1] += " ..."
    return " ".join(words)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _written(parameter: Any, names: list[str]) -> str:
    value = parameter.metavar or str(parameter.name).upper()
    if _is_argument(parameter):
        return roff.italic(value)
    written = ", ".join(map(roff.bold, names))
    return written if parameter.is_flag else f"{written} {roff.italic(value)}"


def _parameter(parameter: Any) -> Iterator[str]:
    text = parameter.help or ""
    if isinstance(parameter.envvar, str):
        text += f" ${parameter.envvar} says it as well."
    if isinstance(parameter.default, str | int | Path) and parameter.default not in (False, ""):
        text += f" Default: {parameter.default}."
    yield from roff.term(_written(parameter, parameter.opts), roff.plain(text))


def _help(text: str) -> Iterator[str]:
    r"""The paragraphs of a help text; those behind a \b stand as they are."""
    for paragraph in cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield from _listed(paragraph.splitlines()[1:])
        else:
            yield from roff.paragraph(" ".join(paragraph.split()))


def _listed(lines: list[str]) -> Iterator[str]:
    title, *rest = lines
    if title.endswith(":"):
        yield from roff.paragraph(title)
        lines = rest
    yield from roff.code(line.removeprefix("  ") for line in lines)


if __name__ == "__main__":
    # The page on the configuration is made first: a man page is made from it.
    for make in (keys.made, endings.made, pages):
        for file, text in make().items():
            file.write_text(text)
