"""HTTP/1.1 for few clients that nobody vouches for: one request for each connection.

| module | owns |
|---|---|
| `message` | a request, a response, and an error that is a response |
| `router` | which function answers a request |
| `server` | accepting, the bounds on a client, h11 over TCP, TLS and Unix sockets |
| `turn` | the share of the event loop that all clients have together |
| `encoding` | gzip, where a client accepts it |

Knows no path and no metric: the admin folder answers.
"""
