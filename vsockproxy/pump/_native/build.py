"""Compiles the native pump into ``vsockproxy.pump._native._pump`` (cffi, API mode).

The header is read twice: by cffi for the declarations and by the compiler.  The module is
optional: where it cannot be compiled, the portable pump serves.
"""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent
_SOURCES = ("pump", "thread", "relay", "half", "pipe", "timer", "limit")

ffibuilder = FFI()
ffibuilder.cdef((_HERE / "pump.h").read_text())
ffibuilder.set_source(
    "vsockproxy.pump._native._pump",
    "#include <stdbool.h>\n#include <stdint.h>\n#include <pump.h>",
    sources=[f"vsockproxy/pump/_native/{name}.c" for name in _SOURCES],
    depends=["vsockproxy/pump/_native/pump.h", "vsockproxy/pump/_native/internal.h"],
    include_dirs=[str(_HERE)],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
    libraries=["pthread"],
    optional=True,
)
