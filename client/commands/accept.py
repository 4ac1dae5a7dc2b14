"""`gliorn-client accept`: shows a study and keeps this site's consent to it."""

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path

from client.config import DIGEST, read_site_config
from client.consent import keep_consent, plain_text
from client.coordinator import say_hello
from client.kit import kit_of
from common.errors import ConfigError, ProtocolError
from common.hello import HelloReply
from common.study import Study, parse_study

TYPED_DIGITS = 8


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "accept",
        help="look at a study and agree to take part in it",
        description="Show a study, as the coordinator offers it or from a file, and keep this site's consent to it. "
        "Without consent a site takes no part. To withdraw it, delete the file that is named at the end.",
    )
    parser.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    parser.add_argument("--study", type=Path, metavar="FILE", help="study.yaml; else the coordinator is asked")
    parser.add_argument("--digest", metavar="D", help="the study's digest, all 64 digits")
    parser.add_argument("--yes", action="store_true", help="do not ask, for a script; needs --digest")
    parser.set_defaults(command=_accept)


def _accept(arguments: argparse.Namespace) -> int:
    digest = _digest(arguments.digest, yes=arguments.yes)
    config = read_site_config(arguments.site)
    kit = kit_of(config, origin=arguments.site)
    now = datetime.now(UTC)
    if arguments.study is not None:
        studies, origin = [_read_study(arguments.study)], f"--study {arguments.study}"
    else:
        studies, origin = _offered(say_hello(kit, config, now=now)), f"the coordinator at {kit.address}"
    study = _chosen(studies, digest, origin=origin)
    print(plain_text(study))
    print(f"The study {study.name} from {origin}, digest {study.digest}")
    print("What this site discloses stays as its own configuration says; the study cannot change it.")
    if not arguments.yes:
        _require_agreement(study)
    path = keep_consent(kit, study, now=now)
    print(f"{config.name}: agreed; kept as {path}")
    print(f"Next: gliorn-client check --site {arguments.site}, then gliorn-client --site {arguments.site}")
    return 0


def _digest(given: str | None, *, yes: bool) -> str | None:
    """The digest of the command line in lower case."""
    if given is None:
        if yes:
            raise ConfigError("--yes needs --digest, so that a script agrees to the study that a person has read")
        return None
    if not re.fullmatch(DIGEST, given.lower()):
        raise ConfigError(
            f"--digest {given!r}: has {len(given)} characters, expected the whole digest of the study, 64 hexadecimal "
            "digits: two studies with one beginning can be made"
        )
    return given.lower()


def _read_study(path: Path) -> Study:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {path}: cannot be read ({error}); name a study.yaml in UTF-8") from None
    return parse_study(text, origin=str(path))


def _offered(reply: HelloReply) -> list[Study]:
    """The studies that the coordinator offers.

    Raises:
        ProtocolError: If one does not mean here what it means there.
    """
    studies = []
    for offer in reply.studies:
        try:
            study = parse_study(offer.text, origin="the coordinator's study")
            fits = study.digest == offer.digest
        except ConfigError:
            fits = False
        if not fits:
            raise ProtocolError(
                f"the study {offer.name[:64]!r} that the coordinator offers is not what its digest says, or needs "
                f"another version of gliorn (there {reply.version[:40]!r}); install the same version on both sides"
            )
        studies.append(study)
    return list({study.digest: study for study in studies}.values())


def _chosen(studies: list[Study], digest: str | None, *, origin: str) -> Study:
    """The one study that is meant."""
    found = [study for study in studies if digest is None or study.digest == digest]
    if len(found) == 1:
        return found[0]
    listed = "".join(f"\n  - {study.name}: {study.digest}" for study in studies) or " none"
    if not found:
        wanted = "a study" if digest is None else f"the study {digest}"
        raise ConfigError(f"{origin}: expected {wanted}, found:{listed}\nAsk the coordinator which study is meant.")
    raise ConfigError(f"{origin}: several studies; name one with --digest:{listed}")


def _require_agreement(study: Study) -> None:
    """Have the person type the beginning of the digest."""
    try:
        typed = input(f"To agree, type the first {TYPED_DIGITS} digits of the digest: ")
    except EOFError:
        typed = ""
    if typed.strip().lower() != study.digest[:TYPED_DIGITS]:
        raise ConfigError(
            f"not agreed: {typed.strip()[:20]!r} is not the beginning of {study.digest}; nothing was written"
        )
