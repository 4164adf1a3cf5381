"""The doors: what people and programs touch."""
