"""Guests whose address is found out at each dial: where to ask, and what is known by now.

Owns: a module for each source that can be asked, and `directory`, which asks, remembers for
a moment and keeps one guest's trouble from every other.  The ways themselves are `guest`'s.
"""
