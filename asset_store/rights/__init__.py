"""Which references may be used on a day, and what follows when one may not be used any more."""
