"""Small trained models, and makers of full-size ones, for tests, measurements and the README."""
