"""Where the bundled demo model comes from: its corpus, its training and its files."""
