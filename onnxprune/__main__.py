"""Run the command line as `python -m onnxprune`."""

from __future__ import annotations

from onnxprune.cli import main

if __name__ == "__main__":
    main()
