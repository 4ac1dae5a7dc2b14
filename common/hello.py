"""What a site and the coordinator's gateway tell each other before and between rounds, as JSON over HTTPS.

`POST /v1/gliorn/hello` with the headers of `common.site_signature`. It starts nothing and changes nothing at the
coordinator but what `gliorn-server status` shows of the site.
"""

from typing import Literal

from pydantic import ConfigDict, Field

from common.documents import Settings
from common.vouchers import Voucher

HELLO_PATH = "/v1/gliorn/hello"

HelloFault = Literal["unsigned", "malformed", "clock", "forged", "unknown-key", "revoked", "other-federation"]
"""Why a gateway refuses a hello, or any call: the signature's faults, and what the coordinator knows of the key."""


class Hello(Settings):
    """What a site says. Keys of a newer version are ignored: an upgraded site gets an answer that says what differs."""

    model_config = ConfigDict(extra="ignore")

    site: str = Field(max_length=63, description="name in the site's own configuration")
    federation_id: str = Field(
        max_length=64, description="the federation that the site was invited to; empty if unknown"
    )
    version: str = Field(max_length=40, description="version of gliorn")
    bundle_digest: str = Field(max_length=64, description="SHA-256 of the installed app bundle")
    authorities: tuple[str, ...] = Field(
        max_length=8, description="SHA-256 of the certificates (DER, hexadecimal) of the authorities the site trusts"
    )


class StudyOffer(Settings):
    """A study of this federation: what a site is asked to consent to."""

    name: str
    digest: str
    text: str = Field(description="the whole study.yaml")


class HelloReply(Settings):
    """What the gateway answers to a site that is admitted. Keys of a newer version are ignored."""

    model_config = ConfigDict(extra="ignore")

    federation: str
    federation_id: str
    site: str = Field(description="name under which the key is admitted")
    time: str = Field(description="the coordinator's clock, ISO 8601 with time zone")
    version: str
    bundle_digest: str
    authorities: str = Field(description="PEM certificates of all authorities that sites should trust")
    studies: tuple[StudyOffer, ...] = Field(description="study.yaml of the federation and of every run not yet ended")
    vouchers: tuple[Voucher, ...] = Field(
        default=(), max_length=16, description="the word of older authorities for newer ones of these"
    )


class HelloRefusal(Settings):
    """What the gateway answers to anybody else, with status 401."""

    fault: HelloFault
    time: str = Field(description="the coordinator's clock, ISO 8601 with time zone")
