"""The review pages: rendered here, with a few ES modules of our own; they decide through `/v1` like any program."""
