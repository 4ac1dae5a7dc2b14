"""What a site and the coordinator's gateway tell each other before and between rounds, as JSON over HTTPS.

`POST /v1/gliorn/hello` with the headers of `common.site_signature`. It starts nothing and changes nothing at the
coordinator but what `gliorn-server status` shows of the site.

Each side shows some of what the other says in a terminal or a log. Every text has therefore a form that holds no line
break and no control character, and a longest length; the texts of studies alone are free, and are read before they
are shown.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from common.documents import Settings
from common.enrolment import NAME
from common.study import STUDY_NAME
from common.vouchers import Voucher

HELLO_PATH = "/v1/gliorn/hello"
MAX_AUTHORITIES = 8
"""Most authorities that a site names."""

MAX_STUDIES = 64
MAX_STUDY_TEXT = 64 * 2**10
"""Most studies of an answer, and most characters of one."""

VERSION = r"^[0-9A-Za-z.+-]{1,40}$"
"""What a version of gliorn looks like."""

_FederationId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Time = Annotated[str, Field(pattern=r"^[0-9T:.+Z-]{1,40}$")]
_Version = Annotated[str, Field(pattern=VERSION)]

HelloFault = Literal["unsigned", "malformed", "clock", "forged", "unknown-key", "revoked", "other-federation"]
"""Why a gateway refuses a hello, or any call: the signature's faults, and what the coordinator knows of the key."""


class Hello(Settings):
    """What a site says. Keys of a newer version are ignored: an upgraded site gets an answer that says what differs."""

    model_config = ConfigDict(extra="ignore")

    site: str = Field(pattern=NAME, description="name in the site's own configuration")
    federation_id: str = Field(
        pattern=r"^([0-9a-f]{32})?$", description="the federation that the site was invited to; empty if unknown"
    )
    version: _Version = Field(description="version of gliorn")
    bundle_digest: _Sha256 = Field(description="SHA-256 of the installed app bundle")
    authorities: tuple[_Sha256, ...] = Field(
        max_length=MAX_AUTHORITIES,
        description="SHA-256 of the certificates (DER, hexadecimal) of the authorities the site trusts",
    )


class StudyOffer(Settings):
    """A study of this federation: what a site is asked to consent to."""

    name: str = Field(pattern=STUDY_NAME)
    digest: _Sha256
    text: str = Field(max_length=MAX_STUDY_TEXT, description="the whole study.yaml")


class HelloReply(Settings):
    """What the gateway answers to a site that is admitted. Keys of a newer version are ignored."""

    model_config = ConfigDict(extra="ignore")

    federation: str = Field(pattern=NAME)
    federation_id: _FederationId
    site: str = Field(pattern=NAME, description="name under which the key is admitted")
    time: _Time = Field(description="the coordinator's clock, ISO 8601 with time zone")
    version: _Version
    bundle_digest: _Sha256
    authorities: str = Field(
        max_length=64 * 2**10, description="PEM certificates of all authorities that sites should trust"
    )
    studies: tuple[StudyOffer, ...] = Field(
        max_length=MAX_STUDIES, description="study.yaml of the federation and of every run not yet ended"
    )
    vouchers: tuple[Voucher, ...] = Field(
        default=(), max_length=16, description="the word of older authorities for newer ones of these"
    )


class HelloRefusal(Settings):
    """What the gateway answers to anybody else, with status 401."""

    fault: HelloFault
    time: _Time = Field(description="the coordinator's clock, ISO 8601 with time zone")
