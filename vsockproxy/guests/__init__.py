"""Guests whose address is looked up at each dial.

Owns: a module for each source of addresses, and `directory`, which asks the sources, caches
their answers and isolates each guest's failures.  The ways, as the configuration has them,
are in `config.guest`.
"""
