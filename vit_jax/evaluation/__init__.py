"""How well it was learned: one file a kind of question."""
