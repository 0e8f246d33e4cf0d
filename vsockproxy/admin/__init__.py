"""The daemon's HTTP side: metrics and health for everyone, the control API for its operator.

`probes` and `control` import h11, prometheus_client and pydantic.  Only `daemon.http_servers`
imports them, when it starts a server: a daemon without one saves the
memory.
"""
