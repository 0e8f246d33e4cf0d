"""Dialling: from a target to a connected socket, one target or several."""
