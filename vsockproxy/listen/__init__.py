"""Listening: bind addresses, own the listening sockets, accept clients."""
