"""`python -m layergraft` is `layergraft`."""

from layergraft.cli import main

main()
