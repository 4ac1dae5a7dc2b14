"""The gateway's answer to a site's hello: which federation this is, whom the site is known as, and what is studied."""

import logging
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from common.errors import ConfigError
from common.hello import MAX_STUDIES, MAX_STUDY_TEXT, Hello, HelloReply, StudyOffer
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
        self._studies = StudiesOnOffer(folder)

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
            studies=tuple(self._studies.now()),
        )

    def _vouchers(self) -> tuple[Voucher, ...]:
        try:
            return vouchers(self._folder)
        except ConfigError as error:  # sites go on with the authorities that they trust
            log.warning("%s", error)
            return ()


class StudiesOnOffer:
    """The studies that a federation's sites are asked to consent to.

    A study is read again only when its file has changed: reading one takes tens of milliseconds, in which the gateway
    answers nobody.
    """

    def __init__(self, folder: FederationFolder) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[object, StudyOffer | None]] = {}

    def now(self) -> list[StudyOffer]:
        """The federation's study and those of runs that have not ended, each once; what is not valid is left out."""
        self._read = {path: self._stamped_offer(path) for path in self._paths()}
        offers: dict[str, StudyOffer] = {}
        for _, offer in self._read.values():
            if offer is not None:
                offers.setdefault(offer.digest, offer)
        return list(offers.values())[:MAX_STUDIES]

    def _paths(self) -> list[Path]:
        paths = [self._folder.study]
        if self._folder.runs.is_dir():
            runs = [RunFolder(path) for path in sorted(self._folder.runs.iterdir())]
            paths += [run.study for run in runs if run.study.is_file() and not run.record.exists()]
        return paths

    def _stamped_offer(self, path: Path) -> tuple[object, StudyOffer | None]:
        try:
            found = path.stat()
        except OSError:
            return None, None
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        before = self._read.get(path)
        return before if before is not None and before[0] == stamp else (stamp, _offer(path, found.st_size))


def _offer(path: Path, size: int) -> StudyOffer | None:
    if size > MAX_STUDY_TEXT:
        log.warning("%s: %d bytes, so no site is offered it; shorten it to %d", path, size, MAX_STUDY_TEXT)
        return None
    try:
        text = path.read_text(encoding="utf-8")
        study = parse_study(text, origin=path.name)
        return StudyOffer(name=study.name, digest=study.digest, text=text)
    except (OSError, ValueError, ConfigError):
        return None
