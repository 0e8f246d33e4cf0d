"""The git commit that the package was built from; setup.py replaces this file in what it builds."""

REVISION = ""
