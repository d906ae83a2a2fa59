"""What `raybrew demo` runs on: generated reviews with their own tokenizer, so that it needs neither network nor data."""
