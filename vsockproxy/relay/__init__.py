"""Relays: one connection from its first byte to its end, PROXY headers included."""
