"""HTTP/1.1 for few clients, none of them trusted: one request for each connection.

| module | owns |
|---|---|
| `message` | a request, a response, and an error that is a response |
| `router` | which function answers a request |
| `exchange` | one request and its response, by h11, within their bounds |
| `server` | accepting over TCP, TLS and Unix sockets; the number of clients and the time of each |
| `turn` | the share of the event loop that all clients have together |
| `encoding` | gzip, where a client accepts it |

Knows no path and no metric: the admin folder answers.
"""
