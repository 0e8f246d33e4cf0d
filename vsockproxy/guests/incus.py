"""Incus, or LXD, which records the CID of each running virtual machine.

Owns: the requests of their REST API over their Unix socket.  Blocks: call it in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote

from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.file_system import is_there
from vsockproxy.unix_http import UnixConnection

SOCKETS: Final = (
    "/var/lib/incus/unix.socket",
    "/run/incus/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
)

_CID: Final = "volatile.vsock_id"  # "used at the last start": it remains after a stop
_TIMEOUT: Final = 5.0
_LARGEST: Final = 1 << 22  # bytes of an answer
_PROJECT: Final = "default"

Instance = dict[str, Any]
"""An instance in the API: ``name``, ``type``, ``status``, ``config``, ..."""


def find_cid(name: str, places: Sequence[str] | None = None) -> int:
    """Return the CID of a virtual machine, ``NAME`` or ``PROJECT/NAME``; raise `GuestError`."""
    places = SOCKETS if places is None else places
    there = [path for path in places if is_there(path)]
    if not there:
        raise GuestError(f"neither Incus nor LXD listens at {', '.join(places)}")
    project, _, instance = name.rpartition("/")
    query = f"/1.0/instances/{quote(instance)}?project={quote(project or _PROJECT)}"
    found: dict[str, int] = {}
    errors: list[GuestError] = []
    for path in there:
        try:
            answer = _get(path, query)
            if answer is not None:
                found[path] = _cid_of(answer, name)
        except GuestError as error:  # the other one may know a guest that runs
            errors.append(error)
    cids = set(found.values())
    if len(cids) > 1:
        raise GuestError(f"{' and '.join(found)} both have an instance {name!r}")
    if cids:
        return cids.pop()
    if errors:
        raise errors[0]
    raise GuestError(f"no instance is named {name!r}: `incus list` shows them")


def list_cids(path: str) -> dict[str, int]:
    """Return the CIDs of the running virtual machines; raise `GuestError`.

    Names of projects other than the default one are ``PROJECT/NAME``.
    """
    answer = _get(path, "/1.0/instances?recursion=1&all-projects=true")
    if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
        raise _malformed(path)
    cids = {_full_name(one): _running_cid(one) for one in answer}
    return {name: cid for name, cid in cids.items() if cid is not None}


def _full_name(instance: Instance) -> str:
    name, project = str(instance.get("name")), instance.get("project", _PROJECT)
    return name if project == _PROJECT else f"{project}/{name}"


def _running_cid(instance: Instance) -> int | None:
    """Return the CID of a running virtual machine; None for any other instance."""
    config = instance.get("config")
    if not isinstance(config, dict) or instance.get("type") != "virtual-machine":
        return None
    if instance.get("status") != "Running" or _CID not in config:
        return None
    return checked_cid(config[_CID], _CID)


def _cid_of(instance: object, name: str) -> int:
    if not isinstance(instance, dict):
        raise GuestError(f"the answer about the instance {name!r} has an unknown form")
    if instance.get("type") != "virtual-machine":
        raise GuestError(f"the instance {name!r} is not a virtual machine")
    cid = _running_cid(instance)
    if cid is None:
        status = instance.get("status")
        raise GuestError(f"the instance {name!r} is {status}: incus start {name}")
    return cid


def _get(path: str, query: str) -> Any:
    """Return the ``metadata`` of an answer; None for 404; raise `GuestError`."""
    connection = UnixConnection(path, _TIMEOUT)
    try:
        connection.request("GET", query)
        response = connection.getresponse()
        status, body = response.status, response.read(_LARGEST)
    except (OSError, HTTPException) as error:
        words = getattr(error, "strerror", None) or error
        raise GuestError(f"{path} cannot be asked: {words}") from error
    finally:
        connection.close()
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _malformed(path) from error
    if status == 404:
        return None
    if not isinstance(answer, dict):
        raise _malformed(path)
    if status != 200:
        raise GuestError(f"{path} refuses: {answer.get('error') or status}")
    return answer.get("metadata")


def _malformed(path: str) -> GuestError:
    return GuestError(f"{path} does not answer as Incus and LXD do: is this the right socket?")
