"""Which requests get the status page, and what of it they choose to see.

Owns: the check of the Host header, and the page's query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlencode, urlsplit

from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.config.settings import Config
from vsockproxy.http.message import HttpError, Request

_PARAMETERS: Final = frozenset({"match", "show", "page", "refresh"})


@dataclass(frozen=True, slots=True)
class View:
    """What a request's query chooses to see.

    Attributes:
      match: a text that shown routes and connections contain, ignoring case.
      problems: whether only routes with a problem are shown.
      page: the part of many routes, from 1.
      refreshes: whether the page is loaded again; not while its form has the focus.
    """

    match: str = ""
    problems: bool = False
    page: int = 1
    refreshes: bool = True

    @property
    def link(self) -> str:
        """Return the URL of this view, relative to the page: a proxy may have it under a prefix."""
        query = {
            "match": self.match,
            "show": "problems" if self.problems else "",
            "page": self.page if self.page > 1 else "",
            "refresh": "" if self.refreshes else "off",
        }
        return "?" + urlencode({key: value for key, value in query.items() if value})

    def shows(self, texts: Iterable[object]) -> bool:
        """Return whether one of the texts has what is looked for; none is read for no match."""
        return not self.match or any(self.match in str(text).lower() for text in texts)


def why_not(config: Config, request: Request) -> str | None:
    """Return why a request does not get the page; None if it does."""
    if config.metrics_page == "off":
        return 'off, by [metrics] page = "off"'
    if config.metrics_page == "auto" and not request.is_local:
        return 'off, as other machines reach this listener; [metrics] page = "on" serves it to them'
    return None


def check_host(config: Config, request: Request) -> None:
    """Raise `HttpError` for a name that another site may have given this machine's address.

    A page of that site could then read ours (DNS rebinding).  Names of a listener that other
    machines reach are not known, and are not checked.
    """
    host = request.headers.get("host", "")
    if not request.is_local or not host:  # browsers send one
        return
    names = {one.host for one in config.metrics if isinstance(one, TcpEndpoint)}
    if not _is_address(name := _host_name(host)) and name not in {"localhost", *names}:
        sentence = f"the status page is not at {host}: use localhost, or the listener's address"
        raise HttpError(403, sentence)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def read_view(query: Mapping[str, list[str]]) -> View:
    """Return what a query chooses; raises `HttpError`."""
    if unknown := query.keys() - _PARAMETERS:
        expected = ", ".join(sorted(_PARAMETERS))
        raise HttpError(400, f"unknown parameter {min(unknown)!r}: expected {expected}")
    values = {name: texts[-1] for name, texts in query.items()}
    page = values.get("page", "1")
    return View(
        match=values.get("match", "").strip().lower(),
        problems=values.get("show") == "problems",
        page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 9 else 1,
        refreshes=values.get("refresh") != "off",
    )
