"""What there is to tell of a model, a plan or a result: figures, as tables for people and as JSON for programs.

`summary` and `coupling` compute figures from a traced model, `comparison` holds two models against each other;
`console` makes tables of them and `documents` JSON. Nothing here prints.
"""
