"""The daemon's HTTP side: what anybody may read, and what its operator may ask and steer.

| module | owns |
|---|---|
| `server` | HTTP on listening sockets, and how a client that is slow or silent is got rid of |
| `observe` | ``/metrics``, ``/healthz``, ``/readyz``: for the metrics listener, read-only |
| `tls` | the certificates of the metrics listener |
| `daemon` | what the API asks of the daemon |
| `operations`, `schema` | the API's answers and questions as models, its OpenAPI document |
| `rates` | bytes a second of every connection, from two looks at the counters |
| `view` | the daemon's state as those models |
| `control` | the API itself, for the Unix socket alone |
| `place` | where that socket is, for the daemon and for who looks for it |
| `client` | asking the API, without trio and pydantic |

hypercorn, starlette and pydantic are imported when a server starts: a daemon without one
does not pay for them.
"""
