"""``python -m torchswat`` is the command line."""

from torchswat.cli import main

main()
