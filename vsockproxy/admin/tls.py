"""The certificates of the metrics listener, read from the files that the configuration names.

Owns: the TLS settings of the server.  The files are read at the start and at each reload, so
that an unusable one is an error before anything changes.
"""

from __future__ import annotations

import ssl

from vsockproxy.config.process import TlsSettings
from vsockproxy.errors import ConfigError, Problem


def tls_context(settings: TlsSettings, source: str) -> ssl.SSLContext:
    """Return the server's TLS context.

    Args:
      source: the configuration's name, for the error.

    Raises:
      ConfigError: if a file cannot be used.
    """
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
        problem = Problem(f"metrics.{key}", f"{files}: {_sentence(error)}")
        raise ConfigError(source, (problem,)) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; a daemon cannot ask for its password")


def _sentence(error: Exception) -> str:
    """Return what is wrong with a file; ssl's reason is a word such as KEY_VALUES_MISMATCH."""
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "").replace("_", " ").lower()
        return f"not PEM files that belong together ({reason or error})"
    return getattr(error, "strerror", None) or str(error)
