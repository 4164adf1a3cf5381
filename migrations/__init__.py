"""Alembic's migrations: additive, bounded by a lock timeout, and each able to go back."""
