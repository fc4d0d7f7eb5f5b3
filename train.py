"""Train LDVC: `accelerate launch train.py [RECIPE] [--key value ...]`; see `ldvc train --help`."""

import sys

from ldvc.commands.training import train


if __name__ == "__main__":
    sys.exit(train())
