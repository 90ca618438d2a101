"""Channel ids on the axes of tensors, the notation that says which axes meet, and the ledger of ties."""
