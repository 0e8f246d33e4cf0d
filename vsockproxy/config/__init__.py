"""From a file, a command line or the environment to the `settings.Config` that the daemon runs.

Importing the package imports none of its modules, so that a health check can read one key of a
file without the models. Other packages import `source`, `load` and `environment`; `file` reads a
file's tree.
"""
