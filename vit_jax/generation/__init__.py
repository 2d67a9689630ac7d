"""Pictures of texts, and how good they are."""
