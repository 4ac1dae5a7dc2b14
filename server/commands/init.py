"""`gliorn-server init`: makes the folder of a new federation."""

import argparse
import re
import secrets
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

from common.authorities import certificate_digest
from common.enrolment import NAME
from common.errors import ConfigError
from server.authority import (
    AUTHORITY_LIFETIME,
    SERVER_LIFETIME,
    make_first_authority,
    require_hosts,
    signing_authority,
    trusted_authorities,
    write_server_certificate,
)
from server.federation_folder import FederationConfig, FederationFolder
from server.private_files import make_private_folder, write_private

PORT, SUPERLINK_PORT = 9092, 9093


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "init",
        help="make the folder of a new federation",
        description="Make the folder of a new federation: its certificate authority, the server's certificate, "
        "federation.yaml and a study.yaml to fill in.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="absent or empty; keep it on a disk that is backed up")
    parser.add_argument(
        "--name", dest="federation_name", required=True, metavar="NAME", help="lower-case letters, digits and '-'"
    )
    parser.add_argument(
        "--host",
        dest="hosts",
        action="append",
        required=True,
        metavar="HOST",
        help="name or address under which hospitals reach this machine; may be given several times, invites hold the "
        "first",
    )
    parser.add_argument("--port", type=int, default=PORT, metavar="PORT", help=f"the one open port ({PORT})")
    parser.set_defaults(command=_init)


def _init(arguments: argparse.Namespace) -> int:
    folder = FederationFolder(arguments.folder)
    now = datetime.now(UTC)
    config = _config(arguments.federation_name, tuple(arguments.hosts), arguments.port)
    _require_empty(folder.path)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    for part in (folder.path, folder.runs, folder.logs, folder.superlink):
        make_private_folder(part)
    make_first_authority(folder, name=config.name, now=now)
    certificate = write_server_certificate(folder, signing_authority(folder), hosts=config.hosts, now=now)
    write_private(folder.study, _study_text(config.name).encode())
    write_private(folder.config, _config_text(config).encode())  # last: it makes the folder a federation's

    [authority] = trusted_authorities(folder)
    print(f"{folder.path}: the federation {config.name}")
    print(
        f"  authority/       the certificate authority, for {AUTHORITY_LIFETIME // timedelta(days=365)} years, until "
        f"{authority.not_valid_after_utc:%Y-%m-%d}"
    )
    print(f"                   SHA-256 {certificate_digest(authority)}")
    print(
        f"  gateway/         the server's certificate for {', '.join(config.hosts)}, for {SERVER_LIFETIME.days} days, "
        f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
    )
    print(f"  federation.yaml  sites will connect to {config.address}, the one port to open")
    print("  study.yaml       a template: decide on its settings together before you invite")
    print("Keys and state in it are for your user alone. Back it up: without authority/ every site must enrol again.")
    print(f"Next: edit {folder.study}, then gliorn-server invite --federation {folder.path} SITE [SITE ...]")
    return 0


def _config(name: str, hosts: tuple[str, ...], port: int) -> FederationConfig:
    """The federation's settings; raises ConfigError for what an option got wrong."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"--name {name!r}: expected lower-case letters, digits and '-', at most 63")
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: expected a number from 1 to 65535")
    require_hosts(hosts)
    return FederationConfig(
        name=name,
        id=secrets.token_hex(16),
        hosts=hosts,
        port=port,
        superlink_port=SUPERLINK_PORT if port != SUPERLINK_PORT else SUPERLINK_PORT + 1,
    )


def _require_empty(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: exists and is not an empty folder; name a folder that is absent or empty")


def _config_text(config: FederationConfig) -> str:
    """federation.yaml, each setting under what it means."""
    lines = ["# The federation, as its coordinator decides it once. Sites learn name, id, the first host and the port."]
    values = config.model_dump(mode="json")
    for setting, field in FederationConfig.model_fields.items():
        value = values[setting]
        if isinstance(value, list):
            value = "[" + ", ".join(f'"{host}"' for host in value) + "]"
        elif isinstance(value, str):
            value = f'"{value}"'
        lines += ["", f"# {field.description}", f"{setting}: {value}"]
    lines += [
        "",
        "# After a change of hosts: `gliorn-server certs renew`. After a change of the first host or the port, sites",
        "# have to change `address` in their site.yaml as well.",
    ]
    return "\n".join(lines) + "\n"


def _study_text(name: str) -> str:
    """The template of study.yaml, under the federation's name."""
    text = (files("server") / "study_template.yaml").read_text(encoding="utf-8")
    return text.replace("name: gliorn-study\n", f'name: "{name}"\n')
