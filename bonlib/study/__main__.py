"""``python -m bonlib.study``: see :mod:`bonlib.study.sweeps`."""

import sys

from bonlib.study.sweeps import main

sys.exit(main())
