"""Rows of language models: encoding, batches, losses, scoring, generation."""
