"""Is it on model? Measured by a judge that was trained on rendered truth."""
