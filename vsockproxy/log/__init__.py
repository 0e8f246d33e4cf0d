"""The log: one line an event, the lines' format, and the recent events kept in memory.

| module | owns |
|---|---|
| `output` | the set-up of structlog, throttled warnings, the libraries' own records |
| `format` | the text of a line: for people, logfmt or JSON |
| `writer` | the thread that writes the lines |
| `recent` | the last events, for the operator's API |

The events, which other modules log.  A test holds this table true against the source.  The
keys of a *connection* are number, route, client and target, and asked where the client has named
the target; *left_out* is the number of equal warnings suppressed since the last one
(`output.Throttle`).

| event | level | means | keys |
|---|---|---|---|
| `pump_started` | info | this pump moves the bytes | pump, why |
| `listening` | info | a listener is open, or has other targets | listen; route and target, \
or server |
| `listener_retrying` | warning | a route or server cannot listen yet; it retries | listen, \
error; route or server |
| `listener_bound` | info | it listens now | listen; route or server |
| `listener_options_failed` | error | a reload's socket options failed | error; route or server |
| `ready` | info | every listener is open | routes, config |
| `reloaded` | info | a new configuration is in use | routes, config; the names that differ: \
added, removed, moved, retargeted, changed, settings, needs_restart |
| `reload_failed` | error | the old configuration stays in use | problem; after a bug exception |
| `reload_not_undone` | error | a bug broke a reload and its undoing | remedy, exception |
| `change_not_undone` | error | a failed change at run time has left its file as the next start \
reads it | error, remedy |
| `added_entry_replaced` | warning | a file has a route or guest of a name that was added at run \
time: the file's is in use | kind, name, config |
| `files_changed` | info | files of the configuration have changed: a reload follows | config |
| `watch_error` | error | a bug in checking the files, or no thread is left; it goes on | remedy, \
exception |
| `needs_restart` | warning | a reload cannot change these settings | settings |
| `unused_socket` | warning | systemd passed a socket that no route uses | name, remedy |
| `connection_closed` | info | the access line, but for `dial_failed` and `client_rejected` | \
*connection*, upstream_bytes, downstream_bytes, \
seconds, reason; if known: why, dial_seconds, held_seconds, vmm_port |
| `connection_error` | error | a bug ended a connection | *connection*, exception |
| `request_decided` | info | a client that named its target may go there, or may not | \
*connection*, verdict; if known: user, rule, address, error |
| `client_rejected` | warning | clients were closed before their dial | *connection*, reason, why, \
*left_out*; error of a request |
| `clients_queued` | warning | a limit leaves clients in the backlog | route, reason, why, \
*left_out* |
| `listener_error` | error | a bug ended a route's accepting; it starts again | route, remedy, \
exception |
| `route_error` | error | a bug ended a route, which is off now | route, remedy, exception |
| `accept_failed` | error | accept(2) fails; clients stay in the backlog | route, error, remedy |
| `accept_recovered` | info | clients are accepted again | route, failures |
| `dial_failed` | warning | targets could not be reached | *connection*, reason, error, remedy, \
*left_out*; target_state where it changed |
| `dial_error` | error | a bug ended a dial that the daemon began | route, exception |
| `target_down` | warning | a background dial found a target down | route, target, was, seconds, \
reason, error, remedy |
| `target_up` | info | a target answers again | route, target, was, seconds |
| `guest_found` | info | a guest's address was found, or has changed | guest, at |
| `credentials_failed` | warning | a file of users cannot be read: every client is denied | error |
| `route_paused` | info | an operator stopped a route's accepting | route |
| `route_resumed` | info | an operator started it again | route |
| `route_draining` | info | an operator closed a route's listener | route, connections |
| `admin_action` | info | an operator changed something by the control socket, or was not \
allowed to | action, what, uid, pid, result |
| `control_socket_failed` | warning | the control socket cannot be made; there is none | error, \
remedy |
| `http_server_failed` | warning | the metrics or API server cannot accept; it retries | server, \
reason, error, remedy, *left_out*; after a bug exception |
| `http_request_failed` | warning | a bug failed HTTP requests | request, reason, error, \
exception, *left_out* |
| `pump_hung` | error | a pump thread does not answer the watchdog | remedy |
| `signal_ignored` | info | SIGUSR1 or SIGUSR2, which mean nothing here | signal |
| `log_level_changed` | info | an operator has set another level | to |
| `drain_delayed` | info | a first signal: clients are still accepted | seconds, connections |
| `draining` | info | a first signal: connections may end | connections |
| `shutting_down` | info | a second signal: connections are ended | connections |
| `stopped` | info | the last line | drained |
| `log_lines_lost` | warning | lines were dropped: slow reader or full disk | lines |
| `library` | any | a record of the libraries' own logging | logger, message, *left_out* |
| `guest_started`, `guest_stopped` | info | the demo's guest came or went | - |
| `guest_without_tls` | warning | the guests of the demo answer no HTTPS: no certificate | error |
"""

import sys

# structlog imports rich where it is installed, for tracebacks that this log does not draw: 50 ms of
# each start and 3 MB of each daemon.  None makes that import fail, as where it is not installed.
if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment] # it is what the import system expects
    try:
        import structlog as _structlog  # noqa: F401 - see above
    finally:
        del sys.modules["rich"]
