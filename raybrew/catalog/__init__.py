"""What raybrew offers by name, as plain rows: one file per family. No torch, no configuration."""
