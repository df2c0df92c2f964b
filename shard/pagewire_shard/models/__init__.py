"""The table-driven decoder and one small file per model family."""
