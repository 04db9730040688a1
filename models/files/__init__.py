"""A base as files: which there are, what is in them, and whether they may be read at all."""
