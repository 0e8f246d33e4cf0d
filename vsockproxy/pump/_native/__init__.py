"""The native pump in C: `pump.h` is its contract, `build` compiles it, `pump` uses it."""
