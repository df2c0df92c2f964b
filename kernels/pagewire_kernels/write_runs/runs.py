"""What the header of a run says, word by word."""

TABLE, TARGET, LENGTH, SOURCE = range(4)
HEADER_WORDS = 4
