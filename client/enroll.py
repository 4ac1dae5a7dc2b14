"""Enrolling a site: its key is made here and stays here; what goes out is a request that holds the public half."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.config import ServerSpec, SiteConfig, parse_site_config
from client.coordinator import site_key
from client.kit import Kit
from client.private_files import write_atomically
from common.enrolment import Invite, make_request, openssh_text, read_invite, read_request
from common.errors import ConfigError

KIT_FOLDER = "federation"
"""Folder beside site.yaml that holds the membership."""

_REQUEST_FILE = "request.txt"
_NAME_IN_TEMPLATE = "name: hospital-a\n"
_SERVER_IN_TEMPLATE = "# How the coordinator is reached."


@dataclass(frozen=True)
class Enrolment:
    """What came of enrolling.

    Attributes:
        request: What the coordinator has to be sent, one line.
        folder: The membership's files.
        key_is_new: Whether the key was made now; else an earlier enrolment with this invite made it.
        configuration: What was done to site.yaml.
    """

    invite: Invite
    request: str
    folder: Path
    key_is_new: bool
    configuration: str


def enroll(text: str, site_file: Path, *, now: datetime) -> Enrolment:
    """Take up an invite: make the site's key pair and write what its configuration needs.

    With the same invite again, nothing is made anew and the request is the same.

    Args:
        text: The invite.
        site_file: The site's configuration; need not exist.
        now: The site's clock, with time zone.

    Raises:
        ConfigError: If the invite or what is there already does not allow it; nothing has been written then.
    """
    invite = read_invite(text, now=now)
    site_file = site_file.expanduser().resolve()
    if not site_file.parent.is_dir():
        raise ConfigError(f"{site_file.parent}: no such folder; make it, or name another place with --site")
    folder = site_file.parent / KIT_FOLDER
    request = _earlier_request(folder, invite)
    new_text, done = _configuration(site_file, invite, has_key=request is not None)
    key_is_new = request is None
    if request is None:
        request = _make_kit(folder, invite)
    try:
        if new_text is not None:
            _write_configuration(site_file, new_text)
    except BaseException:
        if key_is_new:
            shutil.rmtree(folder)
        raise
    return Enrolment(invite, request, folder, key_is_new, done)


def server_section(invite: Invite) -> str:
    """The end of a site's configuration that makes it a member; paths begin at the file's folder."""
    return f"""\
# How the coordinator is reached; written by `gliorn-client enroll`. The folder {KIT_FOLDER} holds this site's key
# and what else belongs to the membership: it is for this user alone, and no backup may give it to anybody else.
server:
  address: "{invite.address}"
  ca_certificate: {KIT_FOLDER}/ca.crt
  private_key: {KIT_FOLDER}/site.key
  federation: "{invite.federation}"
  federation_id: "{invite.federation_id}"
  # max_bandwidth_mbit: 20
"""


def studies_section(invite: Invite) -> str:
    """The setting by which a site consents, empty, with the study that the invite names beside it."""
    if invite.study is None:
        named = "The invite names none: `gliorn-client accept` shows what the coordinator offers."
        example = ""
    else:
        named = f"The invite names the study {invite.study.name}; to agree to it, write"
        example = (
            f'# between the brackets "{invite.study.digest}"\n# or run `gliorn-client accept`, which shows it first.\n'
        )
    return f"# Studies that this site agreed to take part in, by digest.\n# {named}\n{example}studies: []\n"


def _earlier_request(folder: Path, invite: Invite) -> str | None:
    """The request of an earlier enrolment with this very invite; None if there was no enrolment.

    Raises:
        ConfigError: If there is a membership of another kind, whose key must not be lost.
    """
    if not folder.exists():
        return None
    kit = Kit(invite.address, folder / "ca.crt", folder / "site.key", invite.federation, invite.federation_id)
    try:
        text = (folder / _REQUEST_FILE).read_text(encoding="ascii").strip()
        sealed = read_request(text)
        same = sealed.is_sealed_with(invite.token) and sealed.request.invite_id == invite.id
        fits = openssh_text(site_key(kit).public_key()) == sealed.request.public_key and kit.ca_certificate.is_file()
    except (OSError, UnicodeDecodeError, ConfigError):
        same = fits = False
    if not (same and fits):
        raise ConfigError(
            f"{folder}: exists, and what it holds was not made with this invite; if that membership has ended, move "
            "the folder away, delete the server section from the site's configuration, and enrol again"
        )
    return text


def _make_kit(folder: Path, invite: Invite) -> str:
    """Make the folder of the membership, whole or not at all; returns the request."""
    key = ec.generate_private_key(ec.SECP384R1())
    request = make_request(invite, key)
    private_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    authorities = [each.public_bytes(serialization.Encoding.PEM) for each in invite.certificates()]
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{KIT_FOLDER}-"))  # 0700
    try:
        write_atomically(partial / "site.key", private_key)
        write_atomically(partial / "ca.crt", b"".join(authorities))
        write_atomically(partial / _REQUEST_FILE, (request + "\n").encode())
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return request


def _configuration(site_file: Path, invite: Invite, *, has_key: bool) -> tuple[bytes | None, str]:
    """The new content of a site's configuration, None where it needs none, and what is done to it.

    Raises:
        ConfigError: If what stands there does not allow it.
    """
    try:
        before = site_file.read_bytes()
    except FileNotFoundError:
        text = _filled_template(invite)
        parse_site_config(text, origin="the configuration for this invite")
        return text.encode(), "written; fill in data, label_map and cache, and agree under studies"
    try:
        text = before.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{site_file}: is not UTF-8 text; save it as UTF-8") from None
    config = parse_site_config(text, origin=str(site_file))
    if config.name != invite.site:
        raise ConfigError(
            f"{site_file}: name is {config.name!r}, but the invite is for {invite.site!r}; change the name, or ask the "
            "coordinator for an invite for this one"
        )
    if config.server is not None:
        if has_key and config.server.federation_id == invite.federation_id:
            return None, "has all it needs"
        raise ConfigError(
            f"{site_file}: has a server section already, for {config.server.federation or config.server.address}; "
            "delete the section if that membership has ended, or enrol with a configuration in another folder"
        )
    parts = [server_section(invite)]
    if "studies" not in config.model_fields_set:
        parts.insert(0, studies_section(invite))
    newline = "\r\n" if b"\r\n" in before else "\n"
    end = "" if text.endswith("\n") else newline
    added = newline.join(part.replace("\n", newline) for part in ["", *parts])
    _require_same_but_server(text + end + added, config, invite, site_file)
    return before + (end + added).encode(), "server section added at its end"


def _require_same_but_server(text: str, before: SiteConfig, invite: Invite, site_file: Path) -> None:
    """Check that a configuration with added sections is read as it should be."""
    try:
        after = parse_site_config(text, origin=str(site_file))
    except ConfigError:
        after = None
    server = ServerSpec(
        address=invite.address,
        ca_certificate=Path(KIT_FOLDER) / "ca.crt",
        private_key=Path(KIT_FOLDER) / "site.key",
        federation=invite.federation,
        federation_id=invite.federation_id,
    )
    if after != before.model_copy(update={"server": server}):
        raise ConfigError(
            f"{site_file}: is written in a form to which no section can be added at the end; write one setting a line "
            "as in the commented example, without an empty `server:`, and enrol again"
        )


def _filled_template(invite: Invite) -> str:
    """The commented example with the site's name and membership."""
    text = (files("client") / "site_template.yaml").read_text(encoding="utf-8")
    body = text[: text.index(_SERVER_IN_TEMPLATE)]
    assert _NAME_IN_TEMPLATE in body
    body = body.replace(_NAME_IN_TEMPLATE, f'name: "{invite.site}"\n')
    return body + studies_section(invite) + "\n" + server_section(invite)


def _write_configuration(site_file: Path, content: bytes) -> None:
    """Replace a file at once, with the rights that it has; a new one is for its owner alone."""
    mode = site_file.stat().st_mode if site_file.exists() else None
    write_atomically(site_file, content)
    if mode is not None:
        os.chmod(site_file, mode & 0o7777)
