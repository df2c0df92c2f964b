"""python -m pagewire_shard."""

import sys

from pagewire_shard.cli import main

sys.exit(main())
