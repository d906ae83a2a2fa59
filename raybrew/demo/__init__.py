"""`raybrew demo`: generated reviews with a tokenizer of their own, so that it needs neither network nor data."""
