"""`python -m raybrew.cli`."""

from raybrew.cli.main import main

main()
