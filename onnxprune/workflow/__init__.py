"""The public workflow: load, trace, plan, prune, repair, train, and searches over these."""

import logging

logging.getLogger("onnxprune").addHandler(logging.NullHandler())  # a library is silent unless its user wants its log
