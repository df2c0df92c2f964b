"""Layers of the decoder and their specs: attention, feed-forward blocks, norms, matrix products, embeddings."""
