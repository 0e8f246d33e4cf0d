"""The C files of the native pump keep to the layers that their build names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vsockproxy.pump import _native
from vsockproxy.pump._native.build import LAYERS

NATIVE = Path(_native.__file__).parent
LEVELS = {name: level for level, layer in enumerate(LAYERS) for name in layer}
SOURCES = [path for path in sorted(NATIVE.glob("*.[ch]")) if path.name != "_pump.c"]
DEFINITION = re.compile(r"^\w[\w *]*?\*?\b(vsp_\w+)\(", re.MULTILINE)
DEFINED_IN = {
    name: path.stem
    for path in SOURCES
    if path.suffix == ".c"
    for name in DEFINITION.findall(path.read_text())
}


def test_the_layers_name_every_c_file() -> None:
    assert {path.stem for path in SOURCES} == set(LEVELS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_c_file_includes_its_own_layer_and_those_below(path: Path) -> None:
    included = set(re.findall(r'#include "(\w+)\.h"', path.read_text())) - {"pump"}
    assert {name for name in included if LEVELS[name] > LEVELS[path.stem]} == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_c_file_calls_its_own_layer_and_those_below(path: Path) -> None:
    if path.suffix == ".h":
        return
    called = set(re.findall(r"\b(vsp_\w+)\(", path.read_text())) & set(DEFINED_IN)
    higher = {name for name in called if LEVELS[DEFINED_IN[name]] > LEVELS[path.stem]}
    assert higher == set()
