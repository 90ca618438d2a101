"""Small trained models, and builders of full-size ones, for tests, benchmarks and the README."""
