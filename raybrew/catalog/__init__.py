"""What raybrew offers by name, as plain rows: losses, layer rules, shapes, methods. No torch, no configuration."""
