"""The corpus, the training and the files of the bundled demo model."""
