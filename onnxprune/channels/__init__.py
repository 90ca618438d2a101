"""Channel ids: what stands on the axes of tensors, the notation that says which axes meet, and the ledger of ties."""
