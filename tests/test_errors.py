"""The table of errors: every row has a sentence and a remedy, every reason is used."""

import errno
from typing import get_args

import pytest

from vsockproxy import reasons
from vsockproxy.address.endpoint import (
    Dialable,
    FdEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.errors import (
    ConfigError,
    DialError,
    ListenError,
    Problem,
    dial_error,
    listen_error,
)
from vsockproxy.reasons import Cause, Operation, Reason, explain

# The table is private to its module; this test alone reads all its rows.
TABLE = reasons._TABLE
TCP = TcpEndpoint("192.0.2.1", 8080)
ENDPOINTS: dict[str, ListenEndpoint | Dialable] = {
    "": TCP,
    "tcp": TCP,
    "vsock": VsockEndpoint(7, 80),
    "unix": UnixEndpoint("/run/web.sock"),
    "vsock-mux": MuxEndpoint("/run/v.sock", 80),
    "fd": FdEndpoint("https"),
}
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
NO_REMEDY = {"client_left"}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row)))
def test_each_row_has_a_sentence_and_a_remedy_about_its_endpoint(
    row: tuple[str, str, Cause],
) -> None:
    operation, kind, cause = row
    reason, sentence, remedy = TABLE[row]
    assert reason in get_args(Reason)
    assert remedy or reason in NO_REMEDY
    for text in (sentence.format(ENDPOINTS[kind], detail="3 of them"), remedy):
        text = text.format(ENDPOINTS[kind])  # noqa: PLW2901 - filled in
        assert "{" not in text
        assert "  " not in text
        assert not text or len(text.split()) >= 2
        assert text[-1:] not in (".", ",", ":", ";", " ")
    assert operation in ("", *OPERATIONS)
    assert isinstance(cause, str) or cause in errno.errorcode


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", sorted(ENDPOINTS))
def test_every_errno_has_words_for_every_endpoint(operation: Operation, kind: str) -> None:
    for code in errno.errorcode:
        reason, sentence, remedy = explain(operation, ENDPOINTS[kind], code)
        assert reason in get_args(Reason)
        assert sentence
        assert remedy


def test_every_reason_is_used() -> None:
    assert {row.reason for row in TABLE.values()} | {"other"} == set(get_args(Reason))


@pytest.mark.parametrize(
    ("endpoint", "code", "reason", "words"),
    [
        (VsockEndpoint(7, 80), errno.ENODEV, "no_transport", "no running VM owns CID 7"),
        (VsockEndpoint(7, 80), errno.ECONNRESET, "refused", "nothing listens on its port 80"),
        (VsockEndpoint(7, 80), errno.ETIMEDOUT, "timeout", "the guest does not answer"),
        (VsockEndpoint(7, 80), errno.EPERM, "blocked", "seccomp"),
        (VsockEndpoint(7, 80), errno.EAFNOSUPPORT, "blocked", "modprobe vsock"),
        (MuxEndpoint("/v", 80), errno.ENOENT, "not_found", "start the VM"),
        (UnixEndpoint("/v"), errno.EAGAIN, "busy", "backlog"),
        (TCP, errno.ECONNREFUSED, "refused", "nothing listens there"),
        (TCP, errno.EMFILE, "no_descriptors", "LimitNOFILE"),
    ],
)
def test_a_failed_dial_says_why_and_what_to_do(
    endpoint: Dialable, code: int, reason: Reason, words: str
) -> None:
    error = dial_error(endpoint, code)
    assert isinstance(error, DialError)
    assert (error.operation, error.reason, error.errno) == ("dial", reason, code)
    assert words in f"{error.explanation}; {error.remedy}"
    assert error.summary == f"cannot dial {endpoint}: {error.explanation} [{errno.errorcode[code]}]"
    assert str(error) == f"{error.summary}; {error.remedy}"


@pytest.mark.parametrize(
    ("endpoint", "code", "reason", "words"),
    [
        (TCP, errno.EADDRINUSE, "in_use", "ss -lntp"),
        (TCP, errno.EACCES, "denied", "CAP_NET_BIND_SERVICE"),
        (TCP, errno.EADDRNOTAVAIL, "not_local", "not this machine's own"),
        (VsockEndpoint(7, 80), errno.EADDRNOTAVAIL, "not_local", "listen on vsock::80"),
        (UnixEndpoint("/v"), errno.EACCES, "denied", "may not create a file"),
    ],
)
def test_a_failed_listener_says_why_and_what_to_do(
    endpoint: ListenEndpoint, code: int, reason: Reason, words: str
) -> None:
    error = listen_error(endpoint, code)
    assert isinstance(error, ListenError)
    assert (error.operation, error.reason, error.errno) == ("listen", reason, code)
    assert words in str(error)


def test_an_errno_that_the_table_does_not_know_keeps_the_systems_words() -> None:
    assert explain("dial", TCP, errno.EXDEV)[0] == "other"


def test_an_error_without_an_errno_has_no_code_in_its_text() -> None:
    error = DialError(TCP, "name", "the name does not resolve")
    assert str(error) == "cannot dial tcp:192.0.2.1:8080: the name does not resolve"


def test_a_configuration_error_is_a_line_for_each_problem() -> None:
    error = ConfigError("a.yaml", (Problem("", "is odd"), Problem("x[1]", "is worse", 3, 4)))
    assert str(error) == "a.yaml: is odd\na.yaml:3:4: x[1]: is worse"
