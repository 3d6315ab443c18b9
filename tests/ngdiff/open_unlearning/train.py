"""Its script: says what is registered and how it was called."""

import sys

from trainer import TRAINER_REGISTRY

print(sorted(TRAINER_REGISTRY), sys.argv)
