"""The tables of the registry, the same on SQLite and PostgreSQL, and how older ones become these.

Ids of instances and frames are allotted here, not by the database: writers take turns (see
`database`), so ids grow in the order of commits. Whoever has read up to an id has missed nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    text,
    update,
)

from dicom_node.errors import RegistryError

SCHEMA_VERSION: Final = 2

metadata = MetaData()

# What the database is: "schema" is the version of its tables, "registry" names it for index files.
META = Table(
    "registry_meta", metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)  # fmt: skip

# One row per file that left the node.
INSTANCE = Table(
    "instance", metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("series_instance_uid", Text, nullable=False, index=True),
    Column("study_instance_uid", Text, nullable=False, index=True),
    Column("sop_class_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("modality", Text, nullable=False),
    Column("instance_number", BigInteger),
    Column("action", Text, nullable=False),
    Column("received_digest", LargeBinary, nullable=False),
    Column("delivered_digest", LargeBinary, nullable=False),
    Column("key_id", LargeBinary, nullable=False),
    Column("marked_at", BigInteger, nullable=False, index=True),
    Column("received_at", Float(53), nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("frame_count", Integer, nullable=False),
    UniqueConstraint("sop_instance_uid", "delivered_digest"),
)  # fmt: skip

# NULL where something is not known. The hash is signed, as both databases have no other 64 bits.
FRAME = Table(
    "frame", metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("instance_id", BigInteger, nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("original_digest", LargeBinary),
    Column("marked_digest", LargeBinary),
    Column("perceptual_hash", BigInteger),
    Column("message", LargeBinary),
    Column("fingerprint", LargeBinary),
)  # fmt: skip
_BY_MESSAGE = Index(
    "frame_by_message", FRAME.c.message,
    sqlite_where=FRAME.c.message.is_not(None), postgresql_where=FRAME.c.message.is_not(None),
)  # fmt: skip

DELIVERY = Table(
    "delivery", metadata,
    Column("instance_id", BigInteger, primary_key=True, autoincrement=False),
    Column("reference", Text, primary_key=True),
    Column("destination", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("delivered_at", Float(53), nullable=False),
    # What it was recoded to for this destination; "": as the instance's row says.
    Column("transfer_syntax_uid", Text, nullable=False, server_default=""),
)  # fmt: skip

VERDICT = Table(
    "verdict", metadata,
    # SQLite counts up by itself only where the key is called INTEGER.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("sop_instance_uid", Text, nullable=False, index=True),
    Column("series_instance_uid", Text, nullable=False, index=True),
    Column("study_instance_uid", Text, nullable=False, index=True),
    Column("verdict", Text, nullable=False),
    Column("checked_at", Float(53), nullable=False, index=True),
    Column("checked_by", Text, nullable=False),
    Column("details", Text, nullable=False),
)  # fmt: skip


def _add_the_syntax_of_deliveries(connection: Connection) -> None:
    connection.execute(
        text("ALTER TABLE delivery ADD COLUMN transfer_syntax_uid TEXT NOT NULL DEFAULT ''")
    )


# What turns version n into n + 1, in order, beginning with version 1.
_MIGRATIONS: Final[tuple[Callable[[Connection], None], ...]] = (_add_the_syntax_of_deliveries,)


def up_to_date(connection: Connection) -> str | None:
    """Return the registry's name if its tables are as this release has them, else None."""
    if not inspect(connection).has_table(META.name):
        return None
    known: dict[str, str] = {row.key: row.value for row in connection.execute(select(META))}
    return known["registry"] if known["schema"] == str(SCHEMA_VERSION) else None


def prepare(connection: Connection) -> str:
    """Make the tables or bring them up to date, inside a writer's turn; return the registry's name.

    Raises
    ------
    RegistryError
        If a newer release made them.
    """
    if not inspect(connection).has_table(META.name):
        metadata.create_all(connection)
        connection.execute(
            META.insert(),
            [
                {"key": "schema", "value": str(SCHEMA_VERSION)},
                {"key": "registry", "value": secrets.token_hex(16)},
                {"key": "created", "value": str(int(time.time()))},
            ],
        )
    known: dict[str, str] = {row.key: row.value for row in connection.execute(select(META))}
    version = int(known["schema"])
    if version > SCHEMA_VERSION:
        raise RegistryError(
            f"the registry has schema {version}, this release reads up to {SCHEMA_VERSION};"
            " update this node"
        )
    for migrate in _MIGRATIONS[version - 1 :]:
        migrate(connection)
    if version < SCHEMA_VERSION:
        connection.execute(
            update(META).where(META.c.key == "schema").values(value=str(SCHEMA_VERSION))
        )
    return known["registry"]
