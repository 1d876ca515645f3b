"""Online iterative alignment: a policy writes pairs, a reward model filters them, DPO trains on the rest."""
