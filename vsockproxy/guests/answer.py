"""What an answer of a source may be: a guest's CID, or words for why there is none."""

from __future__ import annotations

from typing import Final

from vsockproxy.address.endpoint import CID_ANY, CID_HOST
from vsockproxy.errors import VsockproxyError

_LONGEST_SHOWN: Final = 40  # characters of an answer that is none


class GuestError(VsockproxyError):
    """A guest was not found; the text says why, and what to do about it."""


def checked_cid(answer: object, source: str) -> int:
    """The CID that ``source`` has answered, as a number or as decimal digits.

    Raises `GuestError` for anything that is no guest's: 0, 1 and 2 are the hypervisor's, the
    loopback's and the host's own, and the highest is any (vsock(7)).
    """
    text = str(answer).strip()
    if isinstance(answer, bool) or not (text.isascii() and text.isdecimal()) or len(text) > 20:
        raise GuestError(f"{source} says {_shown(text)!r}, which is no CID")
    cid = int(text)
    if not CID_HOST < cid < CID_ANY:
        raise GuestError(
            f"{source} says {cid}, which is no guest's CID: {CID_HOST + 1} to {CID_ANY - 1}"
        )
    return cid


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
