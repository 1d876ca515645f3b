"""How good a reward model is, beside what anyone would try instead."""
