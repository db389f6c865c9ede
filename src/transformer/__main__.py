"""`python -m transformer VERB` is `transformer VERB`."""

from .cli import main

main()
