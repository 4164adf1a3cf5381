"""What the database has in the end of what the clients of `make bench-clients` asked for."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from asset_store.tables import Run
from flows.wiring import Store


@dataclass(frozen=True, slots=True)
class Record:
    """keys: idempotency keys that made a sheet; least, most: sheets that one of them made; overspent: pictures beyond quotas."""

    keys: int
    least: int
    most: int
    overspent: int


def recorded(store: Store, of_brand: int, of_asker: int) -> Record:
    """Clients give each sheet its idempotency key as the reason."""
    with store.database.transaction() as session:
        made = session.scalars(select(func.count(Run.id)).group_by(Run.requested_by, Run.reason)).all()
        spent = 0
        for whose, most in ((Run.brand_id, of_brand), (Run.requested_by, of_asker)):
            sums = session.scalars(select(func.sum(Run.pictures)).group_by(whose)).all()
            spent += sum(max(0, int(pictures) - most) for pictures in sums)
    return Record(len(made), min(made, default=0), max(made, default=0), spent)
