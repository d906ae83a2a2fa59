"""Forms of signals in a store: how each is collected, kept, checked and given back. One file for each form."""
