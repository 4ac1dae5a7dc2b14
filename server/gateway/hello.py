"""The gateway's answer to a site's hello: which federation this is, whom the site is known as, and what is studied."""

import logging
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from common.errors import ConfigError
from common.hello import Hello, HelloReply, StudyOffer
from common.study import parse_study
from common.vouchers import Voucher
from server.authority import vouchers
from server.federation_folder import FederationConfig, FederationFolder
from server.gateway.admission import RefusedError
from server.run_folder import RunFolder

log = logging.getLogger(__name__)


class Reception:
    """Answers hellos.

    Args:
        folder: The federation's; its studies and authorities are read for each answer.
        config: Its settings.
        version: Of gliorn here.
        bundle_digest: Of the app bundle here.
    """

    def __init__(self, folder: FederationFolder, config: FederationConfig, *, version: str, bundle_digest: str) -> None:
        self._folder, self._config = folder, config
        self._version, self._bundle_digest = version, bundle_digest

    def read(self, body: bytes) -> Hello:
        """What a site says.

        Raises:
            RefusedError: If it is no hello, or one to another federation.
        """
        try:
            hello = Hello.model_validate_json(body)
        except ValidationError:
            raise RefusedError("malformed") from None
        if hello.federation_id not in ("", self._config.id):  # a kit written by hand names none
            raise RefusedError("other-federation")
        return hello

    def reply(self, *, site: str, now: datetime) -> HelloReply:
        """The answer to an admitted site.

        Args:
            site: Name under which its key is admitted.
            now: The gateway's clock, with time zone.

        Raises:
            OSError: If the file of the authorities is unreadable.
        """
        return HelloReply(
            federation=self._config.name,
            federation_id=self._config.id,
            site=site,
            time=now.isoformat(),
            version=self._version,
            bundle_digest=self._bundle_digest,
            authorities=self._folder.authorities.read_text(encoding="ascii"),
            vouchers=self._vouchers(),
            studies=tuple(studies_on_offer(self._folder)),
        )

    def _vouchers(self) -> tuple[Voucher, ...]:
        try:
            return vouchers(self._folder)
        except ConfigError as error:  # sites go on with the authorities that they trust
            log.warning("%s", error)
            return ()


def studies_on_offer(folder: FederationFolder) -> list[StudyOffer]:
    """The federation's study and those of runs that have not ended, each once; one that is not valid is left out."""
    paths = [folder.study]
    if folder.runs.is_dir():
        runs = [RunFolder(path) for path in sorted(folder.runs.iterdir())]
        paths += [run.study for run in runs if run.study.is_file() and not run.record.exists()]
    offers: dict[str, StudyOffer] = {}
    for path in paths:
        offer = _offer(path)
        if offer is not None:
            offers.setdefault(offer.digest, offer)
    return list(offers.values())


def _offer(path: Path) -> StudyOffer | None:
    try:
        text = path.read_text(encoding="utf-8")
        study = parse_study(text, origin=path.name)
    except (OSError, UnicodeDecodeError, ConfigError):
        return None
    return StudyOffer(name=study.name, digest=study.digest, text=text)
