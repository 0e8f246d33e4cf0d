"""The certificates of the metrics listener, read from the files that a configuration names.

Owns: which TLS is spoken.  The files are read at a start and at each reload, so that one
which is wrong is told before anything changes.
"""

from __future__ import annotations

import ssl

from vsockproxy.config.settings import TlsSettings
from vsockproxy.errors import ConfigError, Problem


def tls_context(settings: TlsSettings, source: str) -> ssl.SSLContext:
    """What a server shows its clients, and asks of them; raises `ConfigError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    key = "certificate"
    try:
        context.load_cert_chain(settings.certificate, settings.key, _no_password)
        if settings.client_ca is not None:
            key = "client_ca"
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # SSLError is an OSError
        named = " and ".join(filter(None, (settings.certificate, settings.key)))
        files = named if key == "certificate" else settings.client_ca
        problem = Problem(f"metrics.{key}", f"{files}: {_words(error)}")
        raise ConfigError(source, (problem,)) from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password, and nobody is there to ask for it")


def _words(error: Exception) -> str:
    """What is wrong with a file: the library's reason is a word such as KEY_VALUES_MISMATCH."""
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "").replace("_", " ").lower()
        return f"no PEM files that fit together ({reason or error})"
    return getattr(error, "strerror", None) or str(error)
