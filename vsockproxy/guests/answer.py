"""The check of a source's answer: a guest's CID, or an error."""

from __future__ import annotations

from typing import Final

from vsockproxy.address.endpoint import CID_ANY, CID_HOST
from vsockproxy.errors import VsockproxyError

_LONGEST_SHOWN: Final = 40  # characters of an invalid answer


class GuestError(VsockproxyError):
    """A guest was not found; the text has the cause and the remedy."""


def checked_cid(answer: object, source: str) -> int:
    """Return the CID in an answer, which is a number or decimal digits.

    Args:
      source: the name of the source, for the error.

    Raises:
      GuestError: the answer is not a guest's CID: 0, 1 and 2 are those of the hypervisor, the
        loopback and the host, and the highest means any (vsock(7)).
    """
    text = str(answer).strip()
    if isinstance(answer, bool) or not (text.isascii() and text.isdecimal()) or len(text) > 20:
        raise GuestError(f"{source} answers {_shown(text)!r}, which is not a CID")
    cid = int(text)
    if not CID_HOST < cid < CID_ANY:
        raise GuestError(
            f"{source} answers {cid}, which is not a guest's CID: expected {CID_HOST + 1} to"
            f" {CID_ANY - 1}"
        )
    return cid


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
