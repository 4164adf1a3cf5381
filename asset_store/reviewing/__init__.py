"""What may happen to an asset between being made and being released, and who said so."""
