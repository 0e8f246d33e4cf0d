"""From a file, a command line or the environment to the `route.Config` that the daemon runs.

Imports nothing by itself, so that a health check can read one key of a file without waiting
for the models: `load` and `environment` are what others import, and `document` is what reads
a file's tree.
"""
