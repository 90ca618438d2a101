"""The rules, a file per operator family. Each module registers its own on import; see `onnxprune.trace.registry`."""
