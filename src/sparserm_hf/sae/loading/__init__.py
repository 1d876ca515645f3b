"""Load SAEs: from files here or on the Hub, in any known format, by name, by preset, or by base model.

Files by question:
    How is a format parsed?                     `formats/`, one file for each format. A new format goes there.
    How does `load_sae` work?                   `loaded_sae`
    Where is the weights file in a folder?      `local_saes`
    How is an SAE downloaded?                   `hub_saes`
    Which SAEs are published for a model?       `listed_saes`
    Which SAE and layer does a model get?       `choosing`, `presets`
    How are scale and mean folded into weights? `folding`
    How are files opened without running code?  `weight_files`
"""
