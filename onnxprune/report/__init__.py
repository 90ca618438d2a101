"""Reports: results as tables for people and as JSON for programs.

`summary` and `coupling` describe a traced model, `comparison` compares two models. A result becomes a JSON document in
`documents`, and tables in `console`, `evaluation`, `benchmark`, `sensitivity` and `diagnosis`. Nothing here prints.
"""
