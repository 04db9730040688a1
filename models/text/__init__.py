"""Prompts as tokens and embeddings."""
