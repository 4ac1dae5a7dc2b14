"""The two texts that make a site a member: the coordinator's invite, and the site's request that answers it.

Both are one line: a prefix with the version of the form, a dot, and base64url of 96 or 32 bytes that guard what
follows, then deflated JSON. An invite is signed by the federation's certificate authority. A request proves that the
site holds the private key, and is sealed with the invite's one-time token, which itself never travels back.
Line breaks and blanks that mail programs put in are ignored; any other change is noticed.
"""

import base64
import binascii
import hashlib
import hmac
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from pydantic import ConfigDict, Field, ValidationError

from common.authorities import certificate_digest
from common.documents import Settings
from common.errors import ConfigError

INVITE_PREFIX, REQUEST_PREFIX = "gliorn-invite-1.", "gliorn-request-1."
NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""What the name of a federation or of a site looks like."""

_MAX_JSON_BYTES = 16 * 1024
_SEAL_BYTES = 32
_LONGEST_WRAPPED = 200
"""Mail programs wrap at 72 to 80 characters; a longer line was not wrapped, so that what follows it is something else.
"""
_ModelT = TypeVar("_ModelT", bound=Settings)


class _Part(Settings):
    """What is packed; bytes stand in it as base64url."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


_Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
_FederationId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_InviteId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class InvitedStudy(_Part):
    """The study that the federation had in mind when it invited."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: _Digest

    @property
    def digest(self) -> str:
        """The study's digest in hexadecimal."""
        return self.sha256.hex()


class Invite(_Part):
    """What a site learns of the federation. Whoever holds it can enrol under the site's name, once, until it expires.

    Attributes:
        address: host:port of the gateway.
        authorities: Certificates in DER form; a site checks the coordinator against any of them.
        signer: SHA-256 of the one whose key signed the invite.
        expires: Seconds since 1970; the bound keeps it within the years that Python counts.
        token: One-time secret that seals the request.
    """

    address: str = Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$", max_length=300)
    authorities: tuple[bytes, ...] = Field(min_length=1, max_length=4)
    signer: _Digest
    federation: str = Field(pattern=NAME)
    federation_id: _FederationId
    site: str = Field(pattern=NAME)
    expires: int = Field(ge=0, le=2**37)
    id: _InviteId
    token: _Digest
    study: InvitedStudy | None = None

    @property
    def expires_at(self) -> datetime:
        """When it ends."""
        return datetime.fromtimestamp(self.expires, UTC)

    def certificates(self) -> list[x509.Certificate]:
        """The authorities' certificates.

        Raises:
            ValueError: If one is none.
        """
        return [x509.load_der_x509_certificate(der) for der in self.authorities]


class Request(_Part):
    """What a site asks for: that its key be admitted.

    Attributes:
        public_key: OpenSSH text without a comment.
        proof: Signature of the site's key (ECDSA, SHA-384, DER) over everything else.
    """

    federation_id: _FederationId
    invite_id: _InviteId
    site: str = Field(pattern=NAME)
    public_key: str = Field(max_length=400)
    proof: bytes = Field(max_length=200)


@dataclass(frozen=True)
class SealedRequest:
    """A request as it arrived: readable, but not yet known to be whole and genuine."""

    request: Request
    seal: bytes
    payload: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the whole in hexadecimal: equal for the same request only."""
        return hashlib.sha256(self.seal + self.payload).hexdigest()

    def is_sealed_with(self, token: bytes) -> bool:
        """Whether nothing changed since a holder of the token made it."""
        return hmac.compare_digest(self.seal, _seal(token, self.payload))


def sign_invite(invite: Invite, key: ec.EllipticCurvePrivateKey) -> str:
    """The invite as the text that travels, signed with the key of the authority that it names as its signer."""
    payload = _packed(invite)
    r, s = utils.decode_dss_signature(key.sign(INVITE_PREFIX.encode() + payload, ec.ECDSA(hashes.SHA384())))
    return INVITE_PREFIX + _encode(r.to_bytes(48, "big") + s.to_bytes(48, "big") + payload)


def read_invite(text: str, *, now: datetime) -> Invite:
    """Read an invite and check that it is whole, that its authority signed it, and that it has not expired.

    Raises:
        ConfigError: If not. That the authority is the right one, nobody but the person who sent the invite can say.
    """
    guard, payload = _split(text, INVITE_PREFIX, guard_bytes=96, noun="invite")
    invite = _unpacked(payload, Invite, noun="invite")
    try:
        signers = [each for each in invite.certificates() if certificate_digest(each) == invite.signer.hex()]
        keys = [each.public_key() for each in signers]
    except (ValueError, UnsupportedAlgorithm):
        raise _damaged("invite", "a certificate in it is unreadable") from None
    if not keys or not isinstance(keys[0], ec.EllipticCurvePublicKey):
        raise _damaged("invite", "no certificate in it has the fingerprint that it names")
    signature = utils.encode_dss_signature(*(int.from_bytes(half, "big") for half in (guard[:48], guard[48:])))
    try:
        keys[0].verify(signature, INVITE_PREFIX.encode() + payload, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise _damaged("invite", "its signature does not fit") from None
    if now >= invite.expires_at:
        raise ConfigError(
            f"the invite expired at {invite.expires_at:%Y-%m-%d %H:%M} UTC, and by this machine's clock it is "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC now; ask the coordinator for a new one"
        )
    return invite


def make_request(invite: Invite, key: ec.EllipticCurvePrivateKey) -> str:
    """The request that answers an invite, as the text that travels."""
    public_key = openssh_text(key.public_key())
    proof = key.sign(_proven(invite.federation_id, invite.id, invite.site, public_key), ec.ECDSA(hashes.SHA384()))
    payload = _packed(
        Request(
            federation_id=invite.federation_id,
            invite_id=invite.id,
            site=invite.site,
            public_key=public_key,
            proof=proof,
        )
    )
    return REQUEST_PREFIX + _encode(_seal(invite.token, payload) + payload)


def read_request(text: str) -> SealedRequest:
    """Read a request; whether it is genuine is for `SealedRequest.is_sealed_with` and `proven_key` to say.

    Raises:
        ConfigError: If it is not readable.
    """
    seal, payload = _split(text, REQUEST_PREFIX, guard_bytes=_SEAL_BYTES, noun="request")
    return SealedRequest(_unpacked(payload, Request, noun="request"), seal, payload)


def proven_key(request: Request) -> ec.EllipticCurvePublicKey:
    """The site's key, of which the request proves that its sender holds the private half.

    Raises:
        ConfigError: If the key is none on NIST P-384, or the proof is wrong.
    """
    try:
        key = serialization.load_ssh_public_key(request.public_key.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("the request's public key is unreadable; have the site enrol again") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(
            "the request's public key is of another kind than `gliorn-client enroll` makes, expected ECDSA on NIST "
            "P-384; have the site enrol again"
        )
    if openssh_text(key) != request.public_key:
        raise ConfigError("the request's public key carries more than a key; have the site enrol again")
    message = _proven(request.federation_id, request.invite_id, request.site, request.public_key)
    try:
        key.verify(request.proof, message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise ConfigError(
            "the request does not prove that its sender holds the private key; have the site enrol again"
        ) from None
    return key


def openssh_text(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as one line of OpenSSH text, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")


def texts_in(text: str, prefix: str) -> list[str]:
    """The invites or requests in a text such as a mail, each as one line, however the mail program wrapped them.

    Each begins at a line with the prefix, of whatever version, behind blanks and marks of quotation, and goes on over
    the lines below that hold nothing but its characters.

    Args:
        text: Any text.
        prefix: INVITE_PREFIX or REQUEST_PREFIX.
    """
    family = prefix.rpartition("-")[0]
    found: list[str] = []
    goes_on = False
    for line in text.splitlines():
        plain = line.lstrip("> \t").rstrip()
        if plain.startswith(family):
            found.append("".join(plain.split()))
        elif goes_on and re.fullmatch(r"[A-Za-z0-9_-]+", plain):
            found[-1] += plain
        else:
            goes_on = False
            continue
        goes_on = len(plain) <= _LONGEST_WRAPPED
    return found


def _proven(*values: str) -> bytes:
    return "\n".join((REQUEST_PREFIX, *values)).encode()


def _seal(token: bytes, payload: bytes) -> bytes:
    return hmac.new(token, REQUEST_PREFIX.encode() + payload, hashlib.sha256).digest()


def _packed(part: _Part) -> bytes:
    return zlib.compress(part.model_dump_json(exclude_none=True).encode(), 9)


def _unpacked(payload: bytes, model: type[_ModelT], *, noun: str) -> _ModelT:
    inflater = zlib.decompressobj()
    try:
        as_json = inflater.decompress(payload, _MAX_JSON_BYTES)
    except zlib.error:
        raise _damaged(noun, "its content cannot be unpacked") from None
    if not inflater.eof or inflater.unused_data:
        raise _damaged(noun, "its content does not end where it should")
    try:
        return model.model_validate_json(as_json)
    except ValidationError:
        raise _damaged(noun, "its content is not what this version of gliorn reads") from None


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode("ascii").rstrip("=")


def _split(text: str, prefix: str, *, guard_bytes: int, noun: str) -> tuple[bytes, bytes]:
    """What guards the payload, and the payload."""
    packed = "".join(text.split())
    if not packed.startswith(prefix):
        family = re.escape(prefix.rpartition("-")[0])
        if re.match(family + r"-[0-9]{1,3}\.", packed):
            raise ConfigError(
                f"the {noun} is of another version of gliorn than this one, expected {prefix}…; install the same "
                "version on both sides"
            )
        raise ConfigError(
            f"{packed[:20]!r}… is no {noun}, expected a text that begins with {prefix}; copy it whole, from there on"
        )
    body = packed.removeprefix(prefix)
    try:
        content = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise _damaged(noun, "it holds characters that it cannot hold, or lacks some") from None
    if _encode(content) != body or len(content) <= guard_bytes:
        raise _damaged(noun, "it is too short, or its last character is another")
    return content[:guard_bytes], content[guard_bytes:]


def _damaged(noun: str, found: str) -> ConfigError:
    return ConfigError(f"the {noun} was changed or is incomplete ({found}); copy it whole, or have it made anew")
