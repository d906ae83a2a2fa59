"""One file per verb of raybrew: the same functions behind the command line and the Python API."""
