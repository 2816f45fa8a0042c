"""Where images come from, and the one format in which arrays lie on disk."""
