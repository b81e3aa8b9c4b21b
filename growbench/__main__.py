import sys

from growbench.cli import main

sys.exit(main())
