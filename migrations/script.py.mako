"""${message}"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    ${upgrades if upgrades else ""}


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    ${downgrades if downgrades else ""}
