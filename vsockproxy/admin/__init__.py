"""The daemon's HTTP side: metrics and health for everyone, the control API for its operator.

| module | owns |
|---|---|
| `probes` | ``/metrics``, ``/healthz``, ``/readyz``: read-only, for the metrics listener |
| `page`, `page_request`, `html` | the status page, read-only, for the metrics listener |
| `scrape` | the text of ``/metrics``, in pieces |
| `tls` | the certificates of the metrics listener |
| `control` | the control API, for the control socket alone |
| `openapi`, `schema` | the operations and JSON of the API, and its OpenAPI document |
| `view` | the daemon's state in that JSON |
| `selection` | which connections and routes a request means |
| `rates` | rates per second of the live connections and of the routes |
| `daemon` | the interface of the daemon that all of these use |
| `socket_path` | the path of the control socket, for the daemon and for its clients |
| `client`, `health_client` | clients of the API and of ``/readyz``, without trio and pydantic |

`probes` and `control` import h11, prometheus_client and pydantic.  Only `daemon.http_servers`
imports them, when it starts a server: a daemon without one saves the
memory.
"""
