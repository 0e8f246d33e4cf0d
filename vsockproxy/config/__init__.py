"""From a file, a command line or the environment to the `settings.Config` that the daemon runs.

Imports nothing by itself, so that a health check can read one key of a file without waiting
for the models: `source`, `load` and `environment` are what others import, and `file` reads a
file's tree.
"""
