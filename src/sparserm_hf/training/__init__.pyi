from .config import MIN_LENGTH as MIN_LENGTH
from .config import SparseRMTrainingConfig as SparseRMTrainingConfig
from .trainer import SparseRMTrainer as SparseRMTrainer
