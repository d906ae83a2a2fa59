"""Tables and self-contained HTML pages made from stored runs alone."""
