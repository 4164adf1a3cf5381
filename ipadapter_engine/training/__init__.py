"""The embedded studio model's training: a renderer that knows the truth, and the recipe on top of it."""
