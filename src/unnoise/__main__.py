"""`python -m unnoise` is the command `unnoise`."""

import sys

from unnoise.experiments.cli import main

sys.exit(main())
