"""`python -m tofmipd` is the same as the program `tofmipd`."""

import sys

from tofmipd.cli import main

sys.exit(main())
