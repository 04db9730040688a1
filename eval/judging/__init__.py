"""Judges by name and their files, and the way from what is asked of a model to verdicts in the image table."""
