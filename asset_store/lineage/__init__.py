"""Where a picture came from: the record written with it, and the tree that reads it back."""
