"""The table of events in `vsockproxy.log` against the events that the source logs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import vsockproxy
from vsockproxy import log

SOURCE = Path(vsockproxy.__file__).parent
LOGGER_METHODS = {"debug": 0, "info": 0, "warning": 0, "error": 0, "exception": 0, "log": 1}
EVENT = re.compile(r"[a-z]+(_[a-z]+)*")


def documented_events() -> set[str]:
    """Return the events in the first column of the table."""
    cells = re.findall(
        r"(?m)^\| ((?:`\w+`(?:, )?)+) \| (?:debug|info|warning|error|any) \|", log.__doc__
    )
    return {event for cell in cells for event in re.findall(r"\w+", cell)}


def logged_events() -> set[str]:
    """Return the literal events that the source passes to a logger or to a function that logs."""
    trees = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    positions = LOGGER_METHODS | dict(event_parameters(nodes))
    arguments = [argument for node in nodes for argument in event_arguments(node, positions)]
    return {
        event for argument in arguments for event in strings(argument) if EVENT.fullmatch(event)
    }


def event_parameters(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    """Yield the functions with a parameter ``event``, and its position without ``self``."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in node.args.args if argument.arg != "self"]
            if "event" in names:
                yield node.name, names.index("event")


def event_arguments(node: ast.AST, positions: dict[str, int]) -> Iterator[ast.expr]:
    """Yield the event that a call passes, or that is assigned to a variable ``event``."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=arguments):
            position = positions.get(name, len(arguments))
            yield from arguments[position : position + 1]
        case ast.Assign(targets=[ast.Name(id="event")], value=value):
            yield value


def strings(argument: ast.expr) -> Iterator[str]:
    """Yield a literal string, or both branches of a conditional expression."""
    branches = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
    for branch in branches:
        if isinstance(branch, ast.Constant) and isinstance(branch.value, str):
            yield branch.value


def test_each_event_that_the_source_logs_is_documented() -> None:
    assert logged_events() - documented_events() == set()


def test_each_documented_event_is_logged_by_the_source() -> None:
    assert documented_events() - logged_events() == set()
