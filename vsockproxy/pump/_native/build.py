"""Compile the native pump into ``vsockproxy.pump._native._pump`` (cffi, API mode).

cffi reads `pump.h` for the declarations, and so does the compiler.  The module is optional: where
it cannot be compiled, the portable pump serves.
"""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

LAYERS = (
    (
        "accept",
        "bandwidth",
        "limit",
        "peer",
        "pipe",
        "side",
        "timer",
    ),  # one object each; they know nothing of each other
    ("loop", "route"),  # what the relays of one thread share (a header only), and those of a route
    ("move",),  # one direction of a relay: how its bytes move
    ("relay",),  # two sides, two directions: how they begin and leave their thread
    ("dial",),  # a direct relay's target: how it is connected
    ("closing", "half_close"),  # how the sockets are closed; how a FIN is passed on, or held
    ("tally",),  # what a route counts of its direct relays that need no news
    ("outbox", "turn"),  # news on its way to the caller; what a relay does when it is woken
    ("server",),  # a listening socket whose clients become direct relays
    ("thread",),  # epoll, the inbox and the clock: what wakes relays
    ("pump",),  # the threads together, and the calls of pump.h
)
"""The C files from the bottom up: a file includes and calls only its own layer and those below.

`pump.h` has the types that are part of the interface, so every file may include it.
"""


def _declarations() -> str:
    """Return `pump.h` without its preprocessor lines, which cffi does not take."""
    lines = (_HERE / "pump.h").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "vsockproxy.pump._native._pump",
    "#include <pump.h>",
    sources=[
        f"vsockproxy/pump/_native/{name}.c"
        for layer in LAYERS
        for name in layer
        if (_HERE / f"{name}.c").exists()
    ],
    depends=[f"vsockproxy/pump/_native/{name}.h" for layer in LAYERS for name in layer],
    include_dirs=[str(_HERE)],
    # Hidden: calls between the files are direct, and those within one can be inlined.
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    libraries=["pthread"],
    optional=True,
)
