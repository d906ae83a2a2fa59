"""`python -m raybrew`."""

from raybrew.cli.main import main

main()
