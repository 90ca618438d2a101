"""What a model costs: parameters, multiply-accumulates, bytes and activation memory, also before it is rewritten."""
