"""Which Flower node is which site, and what each site brings to the study."""

import logging
import time
from collections.abc import Callable

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.errors import ConsentError, ProtocolError
from common.flower_private import NodeInfo
from common.messages import MESSAGE_TYPES, read_manifest, task_records
from common.study import Study
from common.tasks import DescribeTask, Failure, SiteManifest
from server.exchange import Contents, collect
from server.patient_grid import PatientGrid
from server.run_folder import Participants

log = logging.getLogger(__name__)

MAX_DESCRIBE_TRIES = 3
"""How often a site that cannot take part is asked again until it connects anew, which is what mending it ends with."""


class Membership:
    """The sites of a run: expected, joined, and why the others did not join.

    A node is taken for the site that the coordinator registered it as (`NodeInfo.name`), never for what its replies
    claim. Only in a federation on one machine, where nodes have no names, does the manifest's name count.

    A site that was enrolled anew is another node under the same name. It takes the place of the old node as soon as
    that one is gone.

    Attributes:
        manifests: What each joined site brings.
        nodes: Flower's node of each joined site.
        problems: For each expected site that has not joined, the reason.
    """

    def __init__(self, grid: Grid, study: Study, participants: Participants) -> None:
        self._grid = grid
        self._study = study
        self._participants = participants
        self._tries: dict[tuple[int, str], int] = {}
        self._grid_calls = PatientGrid(grid)
        self.manifests: dict[str, SiteManifest] = {}
        self.nodes: dict[str, int] = {}
        self.problems: dict[str, str] = dict.fromkeys(participants.sites, "never connected")

    def wait_and_join(self, *, timeout_s: float, on_join: Callable[[str], None]) -> None:
        """Wait until all expected sites are connected, at most for the timeout, and ask those there what they bring."""
        deadline = time.monotonic() + timeout_s
        while len(self._unknown_nodes()) < len(self._participants.sites) and time.monotonic() < deadline:
            time.sleep(min(0.2, timeout_s))
        self.join(timeout_s=self._study.participation.round_timeout_s, on_join=on_join)

    def join(self, *, timeout_s: float, on_join: Callable[[str], None]) -> None:
        """Ask every connected node that is not yet known what it brings; without such a node nothing is sent.

        A node that does not answer in time is asked again the next time; one that says why it cannot take part, only
        a few times.
        """
        unknown = self._unknown_nodes()
        if not unknown:
            return

        def take(key: str, records: RecordDict) -> None:
            site = self._site_of(key)
            info = unknown[key]
            try:
                reply = read_manifest(records)
                if isinstance(reply, Failure):
                    if reply.code == ConsentError.code:  # may be given at any time, so asking has no end
                        self._refuse(site, f"has not consented to this study ({self._study.digest[:12]})")
                        return
                    raise ProtocolError(f"cannot take part: {reply.code}")
                name = site or reply.site
                self._admit(name, info.node_id, reply)
                on_join(name)
            except ProtocolError as error:
                connection = (info.node_id, info.last_activated_at)
                self._tries[connection] = self._tries.get(connection, 0) + 1
                self._refuse(site, str(error))

        failures = collect(
            self._grid,
            Contents.alike(lambda: task_records(DescribeTask(self._study))),
            message_type=MESSAGE_TYPES[DescribeTask],
            group="describe",
            nodes={key: info.node_id for key, info in unknown.items()},
            timeout_s=timeout_s,
            enough=0,
            on_reply=take,
        )
        for key, reason in failures.items():
            self._refuse(self._site_of(key), reason)

    def _unknown_nodes(self) -> dict[str, NodeInfo]:
        """Connected nodes worth asking: by registered name, or by number where names are claimed."""
        online = self._grid_calls.nodes()
        known = set(self.nodes.values())
        unknown = {}
        for info in sorted(online.values(), key=lambda info: info.last_activated_at):
            node = info.node_id
            if node in known or self._tries.get((node, info.last_activated_at), 0) >= MAX_DESCRIBE_TRIES:
                continue
            if self._participants.identity == "claimed":
                unknown[f"#{node}"] = info
            elif info.name in self._participants.sites and self.nodes.get(info.name) not in online:
                unknown[info.name] = info
        return unknown

    def _site_of(self, key: str) -> str | None:
        return None if key.startswith("#") else key

    def _admit(self, name: str, node: int, manifest: SiteManifest) -> None:
        if manifest.site != name:
            raise ProtocolError(
                f"registered as {name!r}, but its configuration says name: {manifest.site!r}; make them equal"
            )
        if name not in self._participants.sites:
            raise ProtocolError(f"{name!r} is not among the sites of this run: {', '.join(self._participants.sites)}")
        if name in self.nodes and self._participants.identity == "claimed":
            raise ProtocolError(f"{name!r} has joined already from another node; give every site a name of its own")
        if manifest.study_digest != self._study.digest:
            raise ProtocolError(
                f"works on study {manifest.study_digest[:12]}, expected {self._study.digest[:12]}; "
                "both sides need the same version of this program"
            )
        self.manifests[name] = manifest
        self.nodes[name] = node
        self.problems.pop(name, None)

    def _refuse(self, site: str | None, reason: str) -> None:
        log.warning("%s: %s", site or "a node", reason)
        if site is not None:
            self.problems[site] = reason
        elif self._participants.identity == "claimed":
            # A nameless node that failed is one of those that have not joined; which one, nobody can tell.
            for name in self.problems:
                self.problems[name] = f"a site that has not joined yet: {reason}"

    def require_unchanged_cohorts(self, cohorts: dict[str, dict[str, str]]) -> None:
        """Let go of sites whose case lists are not those they had before the run was stopped, with the reason."""
        for site, digests in cohorts.items():
            manifest = self.manifests.get(site)
            if manifest is not None and dict(manifest.cohort_digests) != digests:
                del self.manifests[site], self.nodes[site]
                self.problems[site] = "its patients are not those it began the run with"
                log.warning("%s: %s", site, self.problems[site])
