"""Train an SAE on a base model's residual stream, with sae-lens.

`train_sae` in `recipe` runs all steps: load the base model and the texts, then train, measure, save and push the SAE.
Its settings are in `sae_config`. `training_loop` trains on the tokens of `training_tokens`, with the trainer that
`sae_lens_trainer` makes and the checkpoints of `resuming`; `saving` writes the SAE to a folder.
"""
