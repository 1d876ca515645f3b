"""How other people's engines, trainers and formats take a reward model."""
