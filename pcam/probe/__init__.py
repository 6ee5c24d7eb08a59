"""Embeddings of frozen networks, and what is learned on top of them."""
