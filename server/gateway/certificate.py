"""The gateway's TLS certificate, which may be renewed while the gateway runs."""

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from common.errors import ConfigError

log = logging.getLogger("server.gateway")


class GatewayCertificate:
    """The certificate that new connections get: the one in the folder, or the last one that could be used.

    Args:
        certificate: PEM file; the chain without the authority.
        key: PEM file of its private key, written before the certificate.

    Raises:
        ConfigError: If the two cannot be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._stamp = self._changed_to = self._stamp_of_files()
        self._ends: datetime | None = None
        try:
            self._current = self._loaded()
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{certificate}: cannot be used with {key.name} ({type(error).__name__}), expected a certificate and "
                "its private key in PEM; make them anew with `gliorn-server certs renew`"
            ) from None
        self._listening = _server_context()
        self._listening.load_cert_chain(certificate, key)
        # Called in every handshake, also in one that names no host; the connection goes on with the newest pair.
        self._listening.sni_callback = self._take_current

    @property
    def context(self) -> ssl.SSLContext:
        """What to listen with."""
        return self._listening

    def refresh(self) -> None:
        """Load the files if they have changed and are as they were at the last call, so that both are written.

        A pair that cannot be used is left alone, and the log says so. It also says when the certificate has ended.
        """
        if self._ends is not None and self._ends <= datetime.now(UTC):
            self._say_ended(self._ends)
        stamp = self._stamp_of_files()
        settled, self._changed_to = stamp == self._changed_to, stamp
        if stamp == self._stamp or not settled:
            return
        self._stamp = stamp
        try:
            self._current = self._loaded()
        except (OSError, ssl.SSLError, ValueError) as error:
            log.warning(
                "the certificate has changed and cannot be used (%s); connections still get the one before",
                type(error).__name__,
            )

    def _loaded(self) -> ssl.SSLContext:
        context = _server_context()
        context.load_cert_chain(self._certificate, self._key)
        until = x509.load_pem_x509_certificate(self._certificate.read_bytes()).not_valid_after_utc
        if until <= datetime.now(UTC):
            self._say_ended(until)
        else:
            self._ends = until
            log.info("certificate valid until %s", until.date())
        return context

    def _say_ended(self, at: datetime) -> None:
        self._ends = None
        log.warning("the certificate has ended on %s; sites will not connect until it is renewed", at.date())

    def _take_current(self, connection: ssl.SSLSocket | ssl.SSLObject, *_: object) -> None:
        connection.context = self._current

    def _stamp_of_files(self) -> object:
        return [_stamp(self._certificate), _stamp(self._key)]


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return "absent"
    return found.st_ino, found.st_mtime_ns, found.st_size
