"""Keys that are AI agents'."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("api_keys", sa.Column("agent", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Without the column an agent's key would be any program's: they are revoked first."""
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("UPDATE api_keys SET revoked_at = now() WHERE agent AND revoked_at IS NULL")
    op.drop_column("api_keys", "agent")
