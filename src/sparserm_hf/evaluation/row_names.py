"""Names of the rows of an evaluation."""


class RowName:
    """Names of the reward model and of its controls.

    The margins of an evaluation and the controls of a checkpoint are stored under these names, so a changed name would
    make old files unreadable.
    """

    REWARD_MODEL = "SparseRM"
    FROZEN = "without adapter"
    DENSE = "dense representation"
    RANDOM = "random directions"
    ACTIVATIONS = "SAE activations"
    UNGATED = "sum without the gate"
    UNDEBIASED = "without debiasing"
    LENGTH = "length alone"

    @staticmethod
    def alone(objective: str) -> str:
        """Name the row of one objective of a combined reward model."""
        return f"objective {objective} alone"

    @staticmethod
    def own(objective: str) -> str:
        """Name the row of one objective alone on the pairs that belong to it."""
        return f"objective {objective} on its own pairs"
