"""Names of the rows of an evaluation."""


class RowName:
    """Names of the reward model and of its controls.

    An evaluation's margins and a checkpoint's controls are found by these names, on disk too: a name that changes
    makes old files unreadable.
    """

    REWARD_MODEL = "SparseRM"
    DENSE = "dense representation"
    RANDOM = "random directions"
    ACTIVATIONS = "SAE activations"
    UNDEBIASED = "without debiasing"
    LENGTH = "length alone"
