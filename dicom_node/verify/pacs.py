"""The PACS we ask: where it is, and what it says it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_node.config import Config
from dicom_node.dimse.query_scp import PATIENT_ROOT, STUDY_ROOT, SUFFIX
from dicom_node.dimse.query_scu import QueryAssociation, Watch
from dicom_node.errors import ConfigError, ForwardError
from dicom_node.verify import identifiers
from dicom_node.verify.identifiers import IdentifierError, Level

FIND_STUDY_ROOT = STUDY_ROOT + SUFFIX["find"]
FIND_PATIENT_ROOT = PATIENT_ROOT + SUFFIX["find"]
UNABLE = 0xC000
"""Unable to process, PS3.4 Table C.4-1."""


class PacsRefused(ForwardError):
    """The PACS answered a query with a failure."""

    def __init__(self, name: str, status: int, comment: str = "") -> None:
        self.query_status = status
        said = f" ({comment})" if comment else ""
        super().__init__(f"{name} answered the query with status 0x{status:04X}{said}")


@dataclass(frozen=True)
class Wanted:
    """What to fetch of one study: all of it, some series, or some instances of one series."""

    study_instance_uid: str
    series_instance_uids: tuple[str, ...] = ()
    sop_instance_uids: tuple[str, ...] = ()

    def includes(self, study: str, series: str, instance: str) -> bool:
        """Whether an instance is among what is wanted."""
        return (
            study == self.study_instance_uid
            and (not self.series_instance_uids or series in self.series_instance_uids)
            and (not self.sop_instance_uids or instance in self.sop_instance_uids)
        )

    def identifier(self) -> Dataset:
        """Return the identifier that retrieves it."""
        values = {"StudyInstanceUID": self.study_instance_uid}
        level: Level = "STUDY"
        if self.series_instance_uids:
            level, values["SeriesInstanceUID"] = "SERIES", "\\".join(self.series_instance_uids)
        if self.sop_instance_uids:
            level, values["SOPInstanceUID"] = "IMAGE", "\\".join(self.sop_instance_uids)
        return identifiers.keys_of(level, values)


@dataclass(frozen=True, slots=True)
class Planned:
    """One instance that the PACS says it has."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str


@dataclass(frozen=True)
class Pacs:
    """A query/retrieve SCP.

    Attributes
    ----------
    name
        Of its ``[[destination]]``.
    calling_ae
        How we call ourselves there.
    """

    name: str
    ae_title: str
    host: str
    port: int
    calling_ae: str
    timeout_s: float = 60.0

    @classmethod
    def of(cls, config: Config) -> Pacs:
        """Return the PACS that ``[verify]`` names (ConfigError where there is none)."""
        verify = config.verify
        named = [d for d in config.destination if verify.pacs in ("", d.name)]
        if not named:
            raise ConfigError("[verify] needs a [[destination]] to ask; add one")
        pacs = named[0]
        return cls(
            pacs.name, verify.pacs_ae_title or pacs.ae_title, verify.pacs_host or pacs.host,
            verify.pacs_port or pacs.port, verify.ae_title, pacs.timeout_s,
        )  # fmt: skip

    def open(self, *sop_classes: str, watch: Watch = lambda: False) -> QueryAssociation:
        """Associate for query (AssociationRejected, ContextRefused, what `watch` raises)."""
        return QueryAssociation.open(
            self.name, (self.host, self.port), called_ae=self.ae_title, calling_ae=self.calling_ae,
            sop_classes=sop_classes, timeout_s=self.timeout_s, watch=watch,
        )  # fmt: skip

    def find(
        self, assoc: QueryAssociation, keys: Dataset, watch: Watch = lambda: False
    ) -> Iterator[Dataset]:
        """Yield the matches of a query in the Study Root.

        Raises
        ------
        PacsRefused
            If the PACS answers with a failure.
        PacsLost
            If it does not answer.
        """
        syntax = assoc.syntax(FIND_STUDY_ROOT)
        encoded = identifiers.encode(keys, syntax)
        answers = assoc.request("find", FIND_STUDY_ROOT, encoded, syntax, watch=watch)
        with closing(answers):
            for each in answers:
                if each.response.pending and each.identifier is not None:
                    yield self.match(each.identifier, syntax)
                elif not each.response.pending and each.response.status != 0x0000:
                    response = each.response
                    raise PacsRefused(self.name, response.status, response.comment)

    def match(self, encoded: bytes, syntax: str) -> Dataset:
        """Return a match that the PACS sent (PacsRefused if it is no data set)."""
        try:
            return identifiers.decode(encoded, syntax)
        except IdentifierError:
            raise PacsRefused(self.name, UNABLE, "its match cannot be parsed") from None

    def studies_by(self, keys: Dataset, watch: Watch = lambda: False) -> Iterator[Dataset]:
        """Yield the studies that match an identifier at STUDY level (see `find`)."""
        with self.open(FIND_STUDY_ROOT, watch=watch) as assoc:
            yield from self.find(assoc, keys, watch)

    def plan(self, wanted: Wanted, watch: Watch = lambda: False) -> tuple[Planned, ...]:
        """Return every instance that the PACS says it has of what is wanted.

        Raises
        ------
        ForwardError
            If the PACS cannot be asked.
        """
        study = wanted.study_instance_uid
        with self.open(FIND_STUDY_ROOT, watch=watch) as assoc:
            series = wanted.series_instance_uids
            if not series:
                keys = identifiers.keys_of(
                    "SERIES", {"StudyInstanceUID": study}, ("SeriesInstanceUID",)
                )
                series = tuple(_uids(self.find(assoc, keys, watch), "SeriesInstanceUID"))
            found: dict[tuple[str, str], Planned] = {}
            for each in series:
                values = {"StudyInstanceUID": study, "SeriesInstanceUID": each}
                if wanted.sop_instance_uids:
                    values["SOPInstanceUID"] = "\\".join(wanted.sop_instance_uids)
                keys = identifiers.keys_of("IMAGE", values, ("SOPInstanceUID", "SOPClassUID"))
                for match in self.find(assoc, keys, watch):
                    uid = identifiers.text_of(match, "SOPInstanceUID")
                    if wanted.includes(study, each, uid):
                        sop_class = identifiers.text_of(match, "SOPClassUID")
                        found[each, uid] = Planned(uid, sop_class, each)
        return tuple(found.values())


def _uids(matches: Iterable[Dataset], keyword: str) -> Iterator[str]:
    for match in matches:
        uid = identifiers.text_of(match, keyword)
        if uid:
            yield uid
