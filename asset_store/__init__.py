"""What exists and what may happen to it: rows, blobs, libraries and pictures."""
