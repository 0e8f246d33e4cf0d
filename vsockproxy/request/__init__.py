"""Requests: where a client's first bytes say it wants to go; one reader each, without I/O."""
