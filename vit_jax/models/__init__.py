"""How it computes: pure modules that know nothing else of the package."""
