"""What is said once of a whole disk store: its schema and its secret."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, TypedDict

from llmrouter import failpoints
from llmrouter.errors import StoreUnusableError
from llmrouter.stores import _faults as faults
from llmrouter.stores import _layout as layout

if TYPE_CHECKING:
    from llmrouter.stores._rows import Rows


class Meta(TypedDict):
    """The row."""

    schema: int
    secret: str


def opened_meta(rows: Rows) -> Meta:
    """The row of a store, made when the store is new; an older store is brought up to date.

    Raises:
        StoreUnusableError: The store is of a newer version, or has lost this row.
    """
    meta = _stored(rows)
    if meta is None:
        failpoints.reach("store-created")
        meta = _make(rows)
    if meta["schema"] > layout.SCHEMA:
        raise StoreUnusableError(
            f"the store in {rows.cache.folder} was written by a newer llmrouter"
            f" (schema {meta['schema']}, this one knows {layout.SCHEMA}): upgrade llmrouter"
        )
    return meta if meta["schema"] == layout.SCHEMA else _migrate(rows)


def _stored(rows: Rows) -> Meta | None:
    value = rows.cache.get(layout.META)
    return None if value is None else rows.parse(layout.META, _read, value)


def _read(value: bytes) -> Meta:
    fields = json.loads(value)
    return {"schema": int(fields["schema"]), "secret": bytes.fromhex(fields["secret"]).hex()}


def _make(rows: Rows) -> Meta:
    with rows.cache.write(synced=True):
        stored = _stored(rows)  # Another process may have been faster.
        if stored is not None:
            return stored
        if next(rows.cache.all_keys(), None) is not None:
            raise faults.damaged(rows.cache.folder, f"row {layout.META} is missing")
        meta: Meta = {"schema": layout.SCHEMA, "secret": secrets.token_hex(32)}
        rows.cache.set(layout.META, layout.dump(meta))
    return meta


def _migrate(rows: Rows) -> Meta:
    """From schema 1, which lacks rows to find closed batches by their ids, or 2: some to list them.

    The other rows of schema 2 can be read as they are: what they lack has its default. The number keeps an
    older llmrouter away from batches whose state it does not know.
    """
    with rows.cache.write(synced=True):
        meta = _stored(rows) or _make(rows)
        if meta["schema"] < layout.SCHEMA:
            _name_batches(rows, by_id=meta["schema"] == 1)
            meta["schema"] = layout.SCHEMA
            rows.cache.set(layout.META, layout.dump(meta))
            failpoints.reach("migrating")
    return meta


def _name_batches(rows: Rows, *, by_id: bool) -> None:
    for key in rows.keys_with("b"):
        batch = rows.batch(int(key[1:])).batch
        rows.note_ended(int(key[1:]), batch)
        if not by_id:
            continue
        rows.cache.set(f"i{batch.batch_id}", b"%d" % int(key[1:]))
        if batch.provider_batch_id is not None:
            rows.cache.set(f"p{batch.provider_batch_id}", b"%d" % int(key[1:]))
