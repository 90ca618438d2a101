"""The blocks, a file per family. Each module registers its own on import; see `tests.property.builder`."""
