"""`python -m cellbridge`, which is also how torchrun and `accelerate launch -m` start it in several processes."""

import sys

from cellbridge.cli import main

sys.exit(main())
